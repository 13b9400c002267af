"""DDPM on SVHN (cropped digits, 32x32), with the paper's settings for CIFAR-10, but without random flips.

python main.py --mode=prepare --config=configs/ddpm/svhn.py
python main.py --mode=train   --config=configs/ddpm/svhn.py --workdir=results/svhn
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    config = get_default_config()
    config.data.dataset = "svhn"
    config.data.random_flip = False
    return config
