"""DDPM on scikit-learn's 1,797 digits of 8x8 pixels, small enough to train and evaluate in minutes on a CPU.

python main.py --mode=train --config=configs/ddpm/digits.py --workdir=results/digits

The 3,000 steps take 5 minutes on two cores. docs/results.md has the scores.
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    config = get_default_config()
    config.training.n_iters = 3000
    config.training.snapshot_freq = 1000
    config.training.snapshot_freq_for_preemption = 500
    config.data.dataset = "digits"
    config.data.image_size = 8
    config.data.num_channels = 1
    config.data.random_flip = False
    config.model.nf = 32
    config.model.ch_mult = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (4,)
    config.optim.lr = 1e-3
    config.optim.warmup = 100
    config.optim.schedule = "cosine"
    config.eval.batch_size = 600
    config.eval.num_samples = 1797
    config.eval.bpd_dataset = "train"  # digits have no other split
    config.eval.bpd_num_images = 512
    config.analysis.score_samples = 200
    return config
