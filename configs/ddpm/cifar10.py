"""DDPM on CIFAR-10, with the paper's settings.

python main.py --mode=prepare --config=configs/ddpm/cifar10.py
python main.py --mode=train   --config=configs/ddpm/cifar10.py --workdir=results/cifar10
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    return get_default_config()
