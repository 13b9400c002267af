"""The smallest run on digits, for tests that start separate processes: --config=tests/tiny.py."""

from configs.ddpm import digits


def get_config():
    config = digits.get_config()
    config.training.update(batch_size=8, n_iters=12, log_freq=1, snapshot_freq=8, snapshot_freq_for_preemption=4)
    config.training.snapshot_sampling = False
    config.model.update(ch_mult=(1,), attn_resolutions=())
    config.optim.update(warmup=2, schedule="constant")
    config.sampling.n_steps = 2
    config.eval.update(num_samples=30, batch_size=12)
    config.sweep.update(samplers=("ddim",), n_steps=(2,), t_starts=(300,))
    return config
