"""DDPM on MNIST, with the paper's settings, but without random flips, which would mirror the digits.

python main.py --mode=prepare --config=configs/ddpm/mnist.py
python main.py --mode=train   --config=configs/ddpm/mnist.py --workdir=results/mnist

With --config.data.path=FOLDER the images come from the IDX files in a folder instead of TFDS.
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    config = get_default_config()
    config.training.n_iters = 500_000
    config.data.dataset = "mnist"
    config.data.image_size = 28
    config.data.num_channels = 1
    config.data.random_flip = False
    config.model.ch_mult = (1, 2, 2)
    return config
