"""DDPM on the 3,900 colour emoji of a font, 32x32, with a network small enough to train on a CPU.

The font is the one in Debian's package fonts-noto-color-emoji. --config.data.path=PATH selects another bitmap font, or
a sheet of npm's package emoji-datasource-google.

python main.py --mode=train --config=configs/ddpm/emoji.py --workdir=results/emoji
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    config = get_default_config()
    config.training.batch_size = 64
    config.training.n_iters = 8000
    config.training.weighting = 0.5
    config.training.snapshot_freq = 1000
    config.training.snapshot_freq_for_preemption = 500
    config.data.dataset = "emoji"
    config.data.path = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    config.data.held_out = 0.05
    config.data.random_flip = False  # flips would mirror letters and flags
    config.model.nf = 32
    config.model.patch_size = 2
    config.model.prediction = "v"
    config.model.ch_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (8,)
    config.model.num_groups = 8
    config.model.dropout = 0.05
    config.model.ema_rate = 0.9995
    config.optim.optimizer = "Muon"
    config.optim.lr = 4e-3
    config.optim.warmup = 100
    config.optim.schedule = "cosine"
    config.eval.features = "random_conv"  # 3,900 pictures are too few to train a good classifier of their groups
    config.eval.num_samples = 5000
    config.eval.batch_size = 128
    config.analysis.score_samples = 128
    return config
