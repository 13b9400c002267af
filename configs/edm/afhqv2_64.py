"""EDM on AFHQv2 at 64x64: edm-afhqv2-64x64-uncond-vp.pkl, FID 1.96 with Heun's method in 40 steps (79 network calls).

The FID is from EDM's paper, on 50,000 images; it was not measured here. You provide the images, a folder or an array.

python main.py --mode=import --config=configs/edm/afhqv2_64.py --workdir=results/edm_afhqv2_64 \
    --config.data.path=PATH --source=edm-afhqv2-64x64-uncond-vp.pkl
"""

from ml_collections import ConfigDict

from configs.edm import ffhq64


def get_config() -> ConfigDict:
    config = ffhq64.get_config()
    config.model.dropout = 0.25
    return config
