"""DDPM on ImageNet at 64x64, the paper's settings.

python main.py --mode=train --config=configs/ddpm/imagenet64.py --workdir=results/imagenet64
"""

from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.data.dataset = "imagenet"
    config.data.image_size = 64
    return config
