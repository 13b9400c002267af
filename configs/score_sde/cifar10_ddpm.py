"""The DDPM network of score_sde on CIFAR-10, discrete VP: vp/cifar10_ddpm, FID 3.24, FID (ODE) 3.37, 3.28 bits.

python main.py --mode=import --config=configs/score_sde/cifar10_ddpm.py --workdir=results/ddpm_sde --source=CHECKPOINT
"""

from ml_collections import ConfigDict

from configs.score_sde import vp_config


def get_config() -> ConfigDict:
    config = vp_config()
    config.schedule.name = "linear"
    config.model.update(convention="ddpm", num_res_blocks=2)
    config.model.update(resamp_in_blocks=False, skip_rescale=False, group_channels=1)
    return config
