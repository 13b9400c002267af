"""The rules of a config. The values that they reject are in tests/test_bad_input.py."""

import importlib
import math
import subprocess
import sys

import jax
import pytest

from configs import imported
from configs.validation import RULES, validate
from core.files import REPOSITORY, write_json
from metrics.features import FEATURES
from models import MODELS, abstract_params
from models.layers import NONLINEARITIES

NAMES = {"model.name": MODELS, "model.nonlinearity": NONLINEARITIES, "eval.features": FEATURES}
LIGHT = """
import sys
import configs.validation
from jax._src import xla_bridge
print(sorted({"flax", "optax", "orbax", "grain", "diffrax", "tensorflow", "matplotlib"} & set(sys.modules)))
print(xla_bridge.backends_are_initialized())
"""


@pytest.mark.parametrize("field", NAMES)
def test_names_of_networks_are_those_that_exist(field):
    """Catches a network that no config can name, and an allowed name that has no network."""
    assert RULES[field].allowed == f"one of {', '.join(NAMES[field])}"
    assert all(map(RULES[field].holds, NAMES[field]))


def test_rules_do_not_import_the_libraries_of_the_networks():
    """Catches an error in a field that is reported only after seconds of imports.

    Also catches a backend that JAX initialises before models/cpu.py sets its flag.
    """
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stderr


@pytest.mark.parametrize("name", ["cifar10", "ffhq64", "afhqv2_64", "imagenet64"])
def test_configs_of_edm_have_the_published_networks(name):
    """Catches a wrong multiplier, number of blocks or input. The expected counts are from EDM's constructors."""
    config = importlib.import_module(f"configs.edm.{name}").get_config()
    validate(config)
    _, params = abstract_params(config)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count == {"cifar10": 55733891, "ffhq64": 61805571, "afhqv2_64": 61805571, "imagenet64": 295899267}[name]


DEFAULTS = {
    "data": {"image_size": 32, "num_channels": 3, "centered": True},
    "model": {
        **{"nf": 128, "num_res_blocks": 4, "ch_mult": [1, 2, 2, 2], "attn_resolutions": [16], "dropout": 0.1},
        **{"num_scales": 1000, "beta_min": 0.1, "beta_max": 20.0, "sigma_min": 0.01, "sigma_max": 50},
        **{"name": "ncsnpp", "resblock_type": "biggan", "attention_type": "ddpm", "nonlinearity": "swish"},
        **{"skip_rescale": True, "conditional": True, "progressive_combine": "sum", "progressive": "none"},
        **{"fir": False, "fir_kernel": [1, 3, 3, 1], "progressive_input": "none", "embedding_type": "positional"},
        **{"scale_by_sigma": False, "resamp_with_conv": True},
    },
    "training": {"sde": "vpsde", "continuous": True},
}
VE = {"fir": True, "progressive_input": "residual", "embedding_type": "fourier", "scale_by_sigma": True}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cifar10_ddpmpp", {}),
        ("cifar10_ncsnpp", {"model": VE, "data": {"centered": False}, "training": {"sde": "vesde"}}),
        ("cifar10_ddpm", {"model": {"name": "ddpm", "num_res_blocks": 2}, "training": {"continuous": False}}),
    ],
)
def test_configs_of_score_sde_are_those_of_its_own(tmp_path, name, changes):
    """Catches a config that is not that of the published checkpoint: score_sde's config says the same."""
    theirs = {section: fields | changes.get(section, {}) for section, fields in DEFAULTS.items()}
    write_json(tmp_path / "config.json", theirs)
    imported_config = imported.get_config(str(tmp_path / "checkpoint"))
    config = importlib.import_module(f"configs.score_sde.{name}").get_config()
    validate(config)
    config.model.ema_rate = imported_config.model.ema_rate
    config.eval.features = imported_config.eval.features
    assert config.to_json() == imported_config.to_json()
