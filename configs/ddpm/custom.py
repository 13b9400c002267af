"""DDPM on images of your own, at 32x32 unless --config.data.image_size says otherwise.

PATH is a folder of PNG, JPEG or WebP pictures of any depth, a .npy or .npz of uint8, or IDX files.

python main.py --mode=train --config=configs/ddpm/custom.py --config.data.path=PATH --workdir=results/custom
"""

from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.data.dataset = "custom"
    return config
