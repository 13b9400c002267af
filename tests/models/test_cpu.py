import contextlib
import os
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import abstract_params, apply_model, cpu, create_model
from models.layers import Upsample, dropout, group_norm


def plain(monkeypatch):
    """Makes the layers use the implementations for other backends."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 8, 4), (2, 1, 1, 3)])
def test_doubled_convolution_equals_the_plain_one(shape, x64, rng, monkeypatch):
    """Catches errors in values, both gradients and forward-mode derivatives, at odd sizes and images of one pixel."""
    with jax.enable_x64(x64) if x64 else contextlib.nullcontext():
        dtype = jnp.float64 if x64 else jnp.float32
        graphdef, params = nnx.split(Upsample(shape[-1], with_conv=True, rngs=nnx.Rngs(0)), nnx.Param)
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), dtype), params)
        x, dx = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))

        def everything():
            def block(params, x):
                return nnx.merge(graphdef, params)(x, None, None)

            y, dy = jax.jvp(block, (params, x), (params, dx))
            return jax.tree.leaves((y, dy, jax.vjp(block, params, x)[1](jnp.sin(y))))

        fast = everything()
        plain(monkeypatch)
        for found, expected in zip(fast, everything(), strict=True):
            assert found.dtype == dtype
            np.testing.assert_allclose(found, expected, rtol=0, atol=(1e-12 if x64 else 1e-5) * abs(expected).max())


def test_network_equals_the_plain_one(config, rng, monkeypatch):
    """Catches errors in values and in the gradients of every weight and of the input; float64 keeps rounding small."""
    config.model.update(ch_mult=(1, 1))
    graphdef, params = create_model(config, jax.random.key(0))
    with jax.enable_x64():
        # The last layers of residual branches are almost zero initially, which would hide errors in earlier layers.
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.05 * rng.standard_normal(leaf.shape)), params)
        x = jnp.asarray(rng.standard_normal((2, 8, 8, 1)))
        t = jnp.array([3.0, 900.0])

        def loss(params, x):
            eps = apply_model(graphdef, params, x, t, dropout_key=jax.random.key(1))
            return jnp.sum(eps**2), eps

        def everything():
            # The function is new each time, because jit would reuse the trace of the other implementation.
            return jax.tree.leaves(jax.jit(jax.grad(lambda *inputs: loss(*inputs), (0, 1), has_aux=True))(params, x))

        fast = everything()
        plain(monkeypatch)
        slow = everything()
    largest = max(abs(leaf).max() for leaf in slow)
    for found, expected in zip(fast, slow, strict=True):
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * largest)


@pytest.mark.parametrize("shape", [(2, 5, 3, 64), (3, 1, 1, 32), (2, 15, 96)])
def test_group_norm_equals_the_plain_one(shape, rng, monkeypatch):
    """Catches errors in values and derivatives, with groups of one or several channels, and with a single pixel."""
    norm = group_norm(shape[-1], 32, rngs=nnx.Rngs(0))
    with jax.enable_x64():
        scale, bias, x, dx = (jnp.asarray(rng.standard_normal(s)) for s in [shape[-1:], shape[-1:], shape, shape])
        norm.scale[...] = scale
        norm.bias[...] = bias

        def everything():
            y, dy = jax.jvp(norm, (x,), (dx,))
            return y, dy, *jax.vjp(norm, x)[1](jnp.sin(y))

        fast = everything()
        plain(monkeypatch)
        for found, expected in zip(fast, everything(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * abs(expected).max() + 1e-12)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_bfloat16_network_keeps_float32_weights(config, rng, backend, monkeypatch):
    """Catches computation promoted to float32, weights or gradients in bfloat16, and bfloat16 without the option."""
    if backend == "gpu":
        plain(monkeypatch)
    config.model.update(dtype="bfloat16")
    graphdef, params = create_model(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32), params)
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 1)), jnp.float32)
    t = jnp.array([3.0, 900.0])

    def loss(params):
        return jnp.sum(apply_model(graphdef, params, x, t) ** 2)

    convolutions = [
        line for line in jax.jit(loss).lower(params).as_text().splitlines() if "stablehlo.convolution" in line
    ]
    assert len(convolutions) > 5
    assert all("f32" not in line for line in convolutions)
    gradient = jax.eval_shape(jax.grad(loss), params)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, gradient))} == {jnp.dtype("float32")}
    network = jax.jit(apply_model, static_argnums=0)
    eps = network(graphdef, params, x, t)
    config.model.update(dtype="float32")
    exact = network(abstract_params(config)[0], params, x, t)
    assert eps.dtype == exact.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(eps - exact) / np.linalg.norm(exact) < 0.03


@pytest.mark.parametrize("rate", [0.1, 0.75])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    """Catches a wrong rate or scale, correlated values, and a mask that does not depend on the key."""
    x = jnp.ones((50, 8, 8, 64))
    y = dropout(x, rate, jax.random.key(0))
    kept = np.asarray(y) > 0
    np.testing.assert_allclose(np.asarray(y)[kept], 1 / (1 - rate), rtol=1e-6)
    assert kept.mean() == pytest.approx(1 - rate, abs=4e-3)
    # The two values of a random word must be independent.
    assert np.corrcoef(kept[..., ::2].ravel(), kept[..., 1::2].ravel())[0, 1] == pytest.approx(0, abs=0.012)
    np.testing.assert_array_equal(y, dropout(x, rate, jax.random.key(0)))
    assert (y != dropout(x, rate, jax.random.key(1))).any()


def test_flag_keeps_convolutions_off_the_slow_library():
    """Catches a flag that XLA no longer has, or that is set too late."""

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(128, 28, 28, 32), (3, 3, 32, 32)]]
    assert "ynn" not in jax.jit(conv).lower(*shapes).compile().as_text()


@pytest.mark.parametrize(
    ("before", "after"),
    [("", f"{cpu.FLAG}="), ("--other=1", f"--other=1 {cpu.FLAG}="), (f"{cpu.FLAG}=MINE", f"{cpu.FLAG}=MINE")],
)
def test_flag_is_added_unless_the_user_set_it(before, after, monkeypatch):
    """Catches XLA_FLAGS of the user that are overwritten."""
    monkeypatch.setenv("XLA_FLAGS", before)
    runpy.run_path(cpu.__file__)
    assert os.environ["XLA_FLAGS"] == after
