"""Patches as pixels, predictions of v, and options of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import abstract_params, apply_model, create_model, make_denoiser
from models.layers import depth_to_space, space_to_depth


@pytest.mark.parametrize(("size", "channels"), [(1, 1), (2, 3), (4, 1)])
def test_depth_to_space_inverts_space_to_depth(rng, size, channels):
    """Catches rows swapped with columns and permuted channels. The pixels of a patch are in row-major order."""
    x = rng.standard_normal((2, 8, 12, channels))
    patches = space_to_depth(jnp.asarray(x), size)
    assert patches.shape == (2, 8 // size, 12 // size, channels * size**2)
    patch = x[1, size : 2 * size, 2 * size : 3 * size]
    np.testing.assert_allclose(patches[1, 1, 2], patch.ravel(), rtol=1e-6)
    np.testing.assert_allclose(depth_to_space(patches, size), x, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eps_of_a_network_on_v_keeps_every_digit_of_x(config, rng, dtype):
    """Catches x rounded to bfloat16 before eps is computed. At t = 999, the error of x_0 is 160 times that of eps."""
    config.model.update(prediction="v", dtype=dtype)
    graphdef, params = create_model(config, jax.random.key(0))  # its last layer is almost zero
    x = rng.standard_normal((3, 8, 8, 1), np.float32)
    t = np.array([0, 400, 999])
    sigma = np.sqrt(1 - np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t]
    np.testing.assert_allclose(
        make_denoiser(config, graphdef, params).eps(jnp.asarray(x), t), sigma[:, None, None, None] * x, atol=1e-4
    )


def test_every_norm_has_the_groups_of_the_config(config):
    """Catches a norm that has 32 groups anyway. With 32 channels, each channel would lose its mean."""
    config.model.update(num_groups=8, attn_resolutions=(8,))
    network = nnx.merge(*abstract_params(config))
    norms = [module for _, module in nnx.iter_modules(network) if isinstance(module, nnx.GroupNorm)]
    assert len(norms) > 10 and {norm.num_groups for norm in norms} == {8}


def test_patches_halve_height_and_width_inside_the_network(config):
    """Catches a patch_size that has no effect, and attention resolutions compared with the size of the image."""
    config.model.update(patch_size=2, attn_resolutions=(4,))
    graphdef, params = create_model(config, jax.random.key(0))
    assert params["conv_in"]["kernel"].shape == (3, 3, 4, 32)
    assert params["conv_out"]["kernel"].shape == (3, 3, 32, 4)
    assert apply_model(graphdef, params, jnp.zeros((3, 8, 8, 1)), jnp.zeros(3)).shape == (3, 8, 8, 1)
    count = len(jax.tree.leaves(params))
    config.model.attn_resolutions = (8,)
    assert len(jax.tree.leaves(abstract_params(config)[1])) < count
