"""EDM on FFHQ at 64x64: edm-ffhq-64x64-uncond-vp.pkl, with Heun's method in 40 steps (79 network calls).

The FID at 79 calls is 2.39 according to table 2 of EDM's paper. We could not read that table to check the number. You
provide the images: a folder, a zip or an array.

FID at 4, 6, 8 and 10 network calls: Euler (ddim here) 57.5, 35.2, 24.4, 18.4; Heun 345, 142, 57.2, 29.5;
DPM-Solver++(3M) 46.0, 13.7, 6.04, 4.12; UniPC-3 44.8, 12.9, 5.50, 3.84; iPNDM-4 28.3, 10.0, 5.52, 3.98.

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
