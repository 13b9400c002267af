"""DDPM on SVHN, cropped digits of 32x32, with the paper's settings of CIFAR-10.

python main.py --mode=prepare --config=configs/ddpm/svhn.py
python main.py --mode=train   --config=configs/ddpm/svhn.py --workdir=results/svhn
"""

from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.data.dataset = "svhn"
    config.data.random_flip = False
    return config
