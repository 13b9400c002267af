"""Configs of the networks of EDM (Karras et al. 2022, arXiv 2206.00364), for its published files and for training.

The scores in their docstrings are FIDs of 50,000 images that others published; none was measured here. "Few steps" are
the rows at 4, 6, 8 and 10 network calls of diff-solvers-main/README.md in github.com/zju-pi/diff-sampler (commit
68d5ce4), on the same networks. A late start is to be compared with these rows; it has not been tried on these networks.
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def edm_config() -> ConfigDict:
    """The default config with EDM's preconditioning, schedule and sampler, and its DDPM++ network ("vp")."""
    config = get_default_config()
    config.model.update(name="songunet", convention="edm", prediction="edm", num_res_blocks=4, augment_dim=9)
    config.schedule.name = "edm"
    config.sampling.update(sampler="heun", spacing="sigma_rho", n_steps=18)
    config.eval.features = "inception"
    return config
