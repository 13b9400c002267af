"""EDM on FFHQ at 64x64: edm-ffhq-64x64-uncond-vp.pkl, FID 2.39 with Heun's method in 40 steps (79 network calls).

The FID is from EDM's paper, on 50,000 images; it was not measured here. You provide the images, a folder or an array.

python main.py --mode=import --config=configs/edm/ffhq64.py --workdir=results/edm_ffhq64 \
    --config.data.path=PATH --source=edm-ffhq-64x64-uncond-vp.pkl
"""

from ml_collections import ConfigDict

from configs.edm import edm_config


def get_config() -> ConfigDict:
    config = edm_config()
    config.data.update(dataset="custom", image_size=64)
    config.model.update(ch_mult=(1, 2, 2, 2), dropout=0.05)
    config.sampling.n_steps = 40
    return config
