"""DDPM++ on CIFAR-10, continuous VP: vp/cifar10_ddpmpp_continuous, FID 2.55, FID (ODE) 3.93, 3.16 bits per dimension.

With --config.model.num_res_blocks=8: vp/cifar10_ddpmpp_deep_continuous, FID 2.41, FID (ODE) 3.08, 3.13 bits.

python main.py --mode=import --config=configs/score_sde/cifar10_ddpmpp.py --workdir=results/ddpmpp --source=CHECKPOINT
"""

from ml_collections import ConfigDict

from configs.score_sde import vp_config


def get_config() -> ConfigDict:
    return vp_config()
