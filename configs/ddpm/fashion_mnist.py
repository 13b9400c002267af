"""DDPM on Fashion-MNIST: the paper's settings for MNIST, but with a network small enough to train on a CPU.

Debian's package dataset-fashion-mnist installs the four IDX files in the folder data.path. If the path is empty
(--config.data.path=), the images come from TFDS.

python main.py --mode=train --config=configs/ddpm/fashion_mnist.py --workdir=results/fashion_mnist
"""

from ml_collections import ConfigDict

from configs.ddpm import mnist


def get_config() -> ConfigDict:
    config = mnist.get_config()
    config.training.n_iters = 8000
    config.training.weighting = 1.0
    config.training.eval_freq = 1000
    config.training.snapshot_freq = 1000
    config.training.snapshot_freq_for_preemption = 200
    config.data.dataset = "fashion_mnist"
    config.data.path = "/usr/share/datasets/fashion-mnist"
    config.model.nf = 32
    config.model.patch_size = 2
    config.model.prediction = "v"
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (7,)
    config.model.dropout = 0.0
    config.optim.lr = 1e-3
    config.optim.warmup = 100
    config.optim.schedule = "cosine"
    config.eval.num_samples = 10_000
    config.eval.batch_size = 128
    config.analysis.score_samples = 128
    return config
