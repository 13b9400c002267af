"""DDPM on CelebA at 64x64, with the paper's settings.

python main.py --mode=prepare --config=configs/ddpm/celeba64.py
python main.py --mode=train   --config=configs/ddpm/celeba64.py --workdir=results/celeba64
"""

from ml_collections import ConfigDict

from configs.ddpm import celeba


def get_config() -> ConfigDict:
    config = celeba.get_config()
    config.data.image_size = 64
    return config
