"""DDPM on ImageNet at 32x32, with the paper's settings for CIFAR-10.

python main.py --mode=prepare --config=configs/ddpm/imagenet32.py
python main.py --mode=train   --config=configs/ddpm/imagenet32.py --workdir=results/imagenet32
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    config = get_default_config()
    config.data.dataset = "imagenet"
    return config
