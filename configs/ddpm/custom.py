"""DDPM on your own images, at 32x32 unless --config.data.image_size sets another size.

PATH is a folder of pictures (with subfolders), a .npy or .npz file of uint8 images, or a folder of IDX files.

python main.py --mode=train --config=configs/ddpm/custom.py --config.data.path=PATH --workdir=results/custom
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    config = get_default_config()
    config.data.dataset = "custom"
    return config
