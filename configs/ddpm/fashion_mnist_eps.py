"""The network of fashion_mnist_muon.py, but it predicts the noise and is trained with the paper's loss.

python main.py --mode=train --config=configs/ddpm/fashion_mnist_eps.py --workdir=results/fashion_mnist_eps
"""

from ml_collections import ConfigDict

from configs.ddpm import fashion_mnist_muon


def get_config() -> ConfigDict:
    config = fashion_mnist_muon.get_config()
    config.training.n_iters = 14_000
    config.training.weighting = 0.0
    config.model.prediction = "eps"
    return config
