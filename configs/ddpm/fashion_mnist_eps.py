"""The network of fashion_mnist.py with fewer groups in its GroupNorm layers. It predicts the noise.

It is trained by Muon on the paper's loss.

python main.py --mode=train --config=configs/ddpm/fashion_mnist_eps.py --workdir=results/fashion_mnist_eps
"""

from ml_collections import ConfigDict

from configs.ddpm import fashion_mnist


def get_config() -> ConfigDict:
    config = fashion_mnist.get_config()
    config.training.n_iters = 14_000
    config.training.weighting = 0.0
    config.model.num_groups = 8
    config.model.prediction = "eps"
    config.optim.optimizer = "Muon"
    config.optim.lr = 4e-3
    return config
