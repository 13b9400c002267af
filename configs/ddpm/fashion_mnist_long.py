"""The network of fashion_mnist.py trained further: on the paper's loss, and by Muon.

python main.py --mode=train --config=configs/ddpm/fashion_mnist_long.py --workdir=results/fashion_mnist_long
"""

from configs.ddpm import fashion_mnist


def get_config():
    config = fashion_mnist.get_config()
    config.training.n_iters = 11_000
    config.training.loss = "eps"
    config.optim.optimizer = "Muon"
    config.optim.lr = 4e-3
    return config
