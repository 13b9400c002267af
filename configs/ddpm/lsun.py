"""DDPM on one class of LSUN at 64x64, with the paper's settings for CelebA at that size.

The class is church_outdoor; --config.data.dataset=lsun_CLASS selects another: bedroom, bridge, cat, ...

python main.py --mode=prepare --config=configs/ddpm/lsun.py
python main.py --mode=train   --config=configs/ddpm/lsun.py --workdir=results/lsun
"""

from ml_collections import ConfigDict

from configs.ddpm import celeba64


def get_config() -> ConfigDict:
    config = celeba64.get_config()
    config.data.dataset = "lsun_church_outdoor"
    return config
