"""NCSN++ on CIFAR-10, continuous VE: ve/cifar10_ncsnpp_continuous, FID 2.38.

With --config.model.num_res_blocks=8: ve/cifar10_ncsnpp_deep_continuous, FID 2.20.

python main.py --mode=import --config=configs/score_sde/cifar10_ncsnpp.py --workdir=results/ncsnpp --source=CHECKPOINT
"""

from ml_collections import ConfigDict

from configs.score_sde import vp_config


def get_config() -> ConfigDict:
    config = vp_config()
    config.data.centered = False
    config.schedule.update(name="ve", sigma_min=0.01, sigma_max=50.0)
    config.model.update(convention="sigma", prediction="score", divides_by_sigma=True, log_time=True, ema_rate=0.999)
    config.model.update(embedding="fourier", noise_mult=2, encoder="residual", resample_filter=(1, 3, 3, 1))
    return config
