"""DDPM on a class of LSUN at 64x64, with the paper's settings of CelebA at that size.

--config.data.dataset=lsun_CLASS takes another class: bedroom, bridge, cat, ...

python main.py --mode=prepare --config=configs/ddpm/lsun.py
python main.py --mode=train   --config=configs/ddpm/lsun.py --workdir=results/lsun
"""

from configs.ddpm import celeba64


def get_config():
    config = celeba64.get_config()
    config.data.dataset = "lsun_church_outdoor"
    return config
