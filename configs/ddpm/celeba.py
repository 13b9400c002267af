"""DDPM on CelebA at 32x32, the paper's settings.

python main.py --mode=prepare --config=configs/ddpm/celeba.py
python main.py --mode=train   --config=configs/ddpm/celeba.py --workdir=results/celeba32
"""

from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.data.dataset = "celeba"
    return config
