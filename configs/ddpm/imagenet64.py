"""DDPM on ImageNet at 64x64, with the paper's settings of CelebA at that size.

python main.py --mode=train --config=configs/ddpm/imagenet64.py --workdir=results/imagenet64
"""

from configs.ddpm import celeba64


def get_config():
    config = celeba64.get_config()
    config.data.dataset = "imagenet"
    return config
