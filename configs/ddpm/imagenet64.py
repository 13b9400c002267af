"""DDPM on ImageNet at 64x64, with the paper's settings for CelebA at that size.

python main.py --mode=prepare --config=configs/ddpm/imagenet64.py
python main.py --mode=train   --config=configs/ddpm/imagenet64.py --workdir=results/imagenet64
"""

from ml_collections import ConfigDict

from configs.ddpm import imagenet32


def get_config() -> ConfigDict:
    config = imagenet32.get_config()
    config.data.image_size = 64
    return config
