"""DDPM on the colour emoji of emoji.py at 64x64. Only sampling.rank eigenvectors of their covariance are kept.

python main.py --mode=train --config=configs/ddpm/emoji64.py --workdir=results/emoji64
"""

from ml_collections import ConfigDict

from configs.ddpm import emoji


def get_config() -> ConfigDict:
    config = emoji.get_config()
    config.data.image_size = 64
    config.model.ch_mult = (1, 2, 3, 4)
    return config
