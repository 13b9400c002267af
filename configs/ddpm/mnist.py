"""DDPM on MNIST, the paper's settings. The four IDX files are read from data/mnist.

python main.py --mode=train --config=configs/ddpm/mnist.py --workdir=results/mnist
"""

from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.training.n_iters = 500_000
    config.data.dataset = "mnist"
    config.data.data_dir = "data/mnist"
    config.data.image_size = 28
    config.data.num_channels = 1
    config.data.random_flip = False
    config.model.ch_mult = (1, 2, 2)
    return config
