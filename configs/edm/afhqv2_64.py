"""EDM on AFHQv2 at 64x64: edm-afhqv2-64x64-uncond-vp.pkl, with Heun's method in 40 steps (79 network calls).

The FID at 79 calls is 1.96 according to table 2 of EDM's paper. We could not read that table to check the number. You
provide the images: a folder, a zip or an array.

python main.py --mode=import --config=configs/edm/afhqv2_64.py --workdir=results/edm_afhqv2_64 \
    --config.data.path=PATH --source=edm-afhqv2-64x64-uncond-vp.pkl
"""

from ml_collections import ConfigDict

from configs.edm import ffhq64


def get_config() -> ConfigDict:
    config = ffhq64.get_config()
    config.model.dropout = 0.25
    return config
