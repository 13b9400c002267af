"""Configs of EDM's networks (Karras et al. 2022, arXiv 2206.00364), for its published files and for training.

The scores in the docstrings of these configs are FIDs of 50,000 images that others published. None was measured here.
The FIDs at 4, 6, 8 and 10 network calls are of the same networks, from the tables of diff-solvers-main/README.md in
github.com/zju-pi/diff-sampler (commit 68d5ce4). Compare a late start with these scores. We tried no late start on these
networks.
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def edm_config() -> ConfigDict:
    """The default config with EDM's preconditioning, schedule, sampler and DDPM++ network (called "vp" in EDM)."""
    config = get_default_config()
    config.model.update(name="songunet", convention="edm", prediction="edm", num_res_blocks=4, augment_dim=9)
    config.schedule.name = "edm"
    config.sampling.update(sampler="heun", spacing="sigma_rho", n_steps=18)
    config.eval.features = "inception"
    return config
