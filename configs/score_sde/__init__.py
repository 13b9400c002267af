"""Configs of score_sde's networks for CIFAR-10 (Song et al. 2021, arXiv 2011.13456), for its published checkpoints.

With these configs an import needs no config.json beside the checkpoint. The scores in their docstrings are those of the
README of github.com/yang-song/score_sde (commit 0acb9e0): FID on 50,000 images by its own samplers of 1,000 or more
network calls, and "FID (ODE)" by an adaptive solver of the probability-flow ODE. None of them was measured here.
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def vp_config() -> ConfigDict:
    """The default config with DDPM++ on the continuous variance-preserving process."""
    config = get_default_config()
    config.model.update(name="songunet", convention="vp", num_res_blocks=4)
    config.schedule.name = "vp"
    config.eval.features = "inception"
    return config
