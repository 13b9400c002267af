"""The network of fashion_mnist.py with fewer groups in its GroupNorm layers, trained by Muon.

python main.py --mode=train --config=configs/ddpm/fashion_mnist_muon.py --workdir=results/fashion_mnist_muon
"""

from ml_collections import ConfigDict

from configs.ddpm import fashion_mnist


def get_config() -> ConfigDict:
    config = fashion_mnist.get_config()
    config.training.n_iters = 6000
    config.training.weighting = 0.5
    config.model.num_groups = 8
    config.optim.optimizer = "Muon"
    config.optim.lr = 4e-3
    return config
