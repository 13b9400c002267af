"""Configs of score_sde's networks for CIFAR-10 (Song et al. 2021, arXiv 2011.13456), for its published checkpoints.

With these configs an import needs no config.json beside the checkpoint. The scores in the docstrings of these configs
are from the README of github.com/yang-song/score_sde (commit 0acb9e0). FIDs are of 50,000 images, drawn by score_sde's
samplers with 1,000 or more network calls. "FID (ODE)" is with an adaptive solver of the probability-flow ODE. None was
measured here.
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def vp_config() -> ConfigDict:
    """A new config: the default with DDPM++ on the continuous variance-preserving process."""
    config = get_default_config()
    config.model.update(name="songunet", convention="vp", num_res_blocks=4)
    config.schedule.name = "vp"
    config.eval.features = "inception"
    return config
