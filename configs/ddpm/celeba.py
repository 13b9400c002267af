"""DDPM on CelebA at 32x32, with the paper's settings.

python main.py --mode=prepare --config=configs/ddpm/celeba.py
python main.py --mode=train   --config=configs/ddpm/celeba.py --workdir=results/celeba32
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    config = get_default_config()
    config.data.dataset = "celeba"
    return config
