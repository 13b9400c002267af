"""DDPM on MNIST, the paper's settings but for its random flips, which would make mirrored digits.

python main.py --mode=prepare --config=configs/ddpm/mnist.py
python main.py --mode=train   --config=configs/ddpm/mnist.py --workdir=results/mnist

--config.data.path=FOLDER takes the four IDX files from a folder in place of TFDS.
"""

from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.training.n_iters = 500_000
    config.data.dataset = "mnist"
    config.data.image_size = 28
    config.data.num_channels = 1
    config.data.random_flip = False
    config.model.ch_mult = (1, 2, 2)
    return config
