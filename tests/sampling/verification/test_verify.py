"""`verify` on samplers in NumPy that are correct, or have a known mistake."""

import inspect
import itertools

import jax
import numpy as np
import pytest
from jaxtyping import Float

from core.errors import UserError
from sampling.verification.arrays import library_of
from sampling.verification.flows import ALPHA_BARS, DIM, GAUSSIAN, LAST, MIXTURE, alpha_bar, exact_end, start
from sampling.verification.mistakes import MISTAKES, T, ddim
from sampling.verification.verify import ADAPTERS, sampler_of, verify


def as_sampler(**options):
    """Returns DDIM, with the options of a mistake, as a foreign sampler."""

    def sampler(eps_fn, alpha_bars, start, times):
        def eps(x, t):
            return eps_fn(x.reshape(start.shape), t).reshape(-1, DIM)

        return ddim(start.reshape(-1, DIM), times, network=eps, **options).reshape(start.shape)

    return sampler


def heun(eps_fn, sigmas, start, times):
    """Heun's method of Karras et al. (2022), algorithm 1, in x / signal."""
    x = start
    ratios = np.append(sigmas[times], 0)
    for here, there in itertools.pairwise(ratios):
        slope = eps_fn(x, here)
        euler = x + (there - here) * slope
        x = x + (there - here) * (slope + eps_fn(euler, there)) / 2 if there else euler
    return x


heun.order = 2
heun.nfe = lambda n: 2 * n - 1


def results(report):
    return {finding.check: finding.passed for finding in report.findings}


def test_ddim_passes():
    """Catches a wrong exact answer, and a check that every sampler fails."""
    report = verify(as_sampler())
    assert report.passed and report.fault is None
    assert "FAILED" not in report.text and report.text.endswith("all checks passed")


@pytest.mark.parametrize("text", MISTAKES)
def test_each_mistake_is_found_and_named(text):
    """Catches a mistake that passes all checks, and one that is reported as another."""
    report = verify(as_sampler(**MISTAKES[text]))
    assert not report.passed
    assert report.fault.startswith(text)


def test_sampler_of_sigmas_and_its_claims():
    """Catches sigmas of another scale, and claims that are not read. Heun's method has order 2, not 3."""
    assert verify(heun).passed

    def boasting(eps_fn, sigmas, start, times):
        return heun(eps_fn, sigmas, start, times)

    boasting.order, boasting.nfe = 3, lambda n: n
    report = verify(boasting)
    failed = {check for check, passed in results(report).items() if passed is False}
    assert failed == {"network calls", "order from t = 960", "order from t = 640"}
    assert "1, 3, 5, 9, 17 for 1, 2, 3, 5, 9 times; claimed 1, 2, 3, 5, 9" in report.text


def test_ancestral_sampler_is_judged_by_its_moments():
    """Catches noise with a wrong variance, which does not change the mean."""

    def ancestral(factor):
        rng = np.random.default_rng(0)

        def sampler(eps_fn, alpha_bars, start, times):
            x = start
            for t, s in zip(times, (*times[1:], -1), strict=True):
                ab, next_ab = alpha_bar(t), alpha_bar(s)
                eps = eps_fn(x, t)
                x0 = (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
                variance = (1 - next_ab) / (1 - ab) * (1 - ab / next_ab)
                noise = np.sqrt(factor * variance) * rng.standard_normal(x.shape)
                x = np.sqrt(next_ab) * x0 + np.sqrt(1 - next_ab - variance) * eps + noise
            return x

        sampler.stochastic = True
        return sampler

    good = {"network calls": True, "last step": True, "mean and covariance": True, "repeated, other batch": None}
    assert results(verify(ancestral(1.0))) == good
    assert results(verify(ancestral(0.5))) == good | {"mean and covariance": False}


GOOD = as_sampler()
NOISE = np.random.default_rng(1)


def euler(sigmas_given, called=lambda here, there, t: here, end=0.0):
    """Euler's method in x / signal, with a mistake."""

    def sampler(eps_fn, sigmas, start, times):
        x = start
        for t, (here, there) in zip(times, itertools.pairwise((*sigmas_given(sigmas, times), end)), strict=True):
            x = x + (there - here) * eps_fn(x, called(here, there, t))
        return x

    return sampler


def slope_used_twice(eps_fn, sigmas, start, times):
    return euler(lambda sigmas, times: sigmas[times])(eps_fn, sigmas, start, times)


slope_used_twice.order = 2

# Faults that are no row of MISTAKES: the sampler, the fault that is named, and the checks that fail, at least.
FAULTS = {
    "batch": (
        lambda e, a, x, t: GOOD(e, a, x, t) + 1e-3 * GOOD(e, a, x, t).mean(axis=0),
        "an image depends on the others of its batch",
        {"repeated, other batch"},
    ),
    "seeded noise": (
        lambda e, a, x, t: GOOD(e, a, x, t) + 0.01 * np.random.default_rng(0).standard_normal(x.shape),
        "an image depends on the others of its batch, or on its place there",
        {"repeated, other batch"},
    ),
    "global noise": (
        lambda e, a, x, t: GOOD(e, a, x, t) + 0.01 * NOISE.standard_normal(x.shape),
        "a second run gives other images",
        {"repeated, other batch"},
    ),
    "own start": (
        lambda e, a, x, t: GOOD(e, a, np.random.default_rng(0).standard_normal(x.shape), t),
        "the start is ignored",
        {"repeated, other batch", "order from t = 640"},
    ),
    "own times": (
        lambda e, a, x, t: GOOD(e, a, x, np.linspace(LAST, 0, len(t)).astype(int)),
        "the times are ignored",
        {"network calls"},
    ),
    "no last step": (
        lambda e, a, x, t: GOOD(e, a, x, t[:-1]) if len(t) > 1 else x,
        "there is no step from the last time",
        {"network calls", "last step"},
    ),
    "no call": (lambda e, a, x, t: x, "the network is never called", {"network calls", "mean and covariance"}),
    "scaled times": (
        lambda e, a, x, t: GOOD(lambda x, t: e(x, t / 1000), a, x, t),
        "the network is called at 0.001 t",
        {"network calls"},
    ),
    "sigmas shifted": (
        euler(lambda sigmas, times: np.append(sigmas, 2 * sigmas[-1])[times + 1]),
        "the network is called at t + 1",
        {"network calls"},
    ),
    "times for sigmas": (
        euler(lambda sigmas, times: sigmas[times], lambda here, there, t: t),
        "the network is given times, where it takes sigmas",
        {"network calls"},
    ),
    "end of the step": (
        euler(lambda sigmas, times: sigmas[times], lambda here, there, t: there),
        "the network is called at the time at the end of each step",
        {"network calls"},
    ),
    "sigma_min at the end": (
        euler(lambda sigmas, times: sigmas[times], end=0.1),
        "the last step does not remove the noise",
        {"last step"},
    ),
    "first order": (slope_used_twice, "all steps are those of DDIM, which has order 1; claimed 2", {"known mistakes"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found_and_named(name):
    """Catches a fault that passes, or whose report leaves the user to guess."""
    sampler, fault, failed = FAULTS[name]
    report = verify(sampler)
    assert report.fault.startswith(fault)
    assert failed <= {check for check, passed in results(report).items() if passed is False}


def test_other_times_are_reported():
    """Catches a sampler whose number of calls is right, but not their times."""
    report = verify(lambda eps_fn, alpha_bars, start, times: GOOD(eps_fn, alpha_bars, start, np.maximum(times - 3, 0)))
    assert "called at 637 where the times are 640" in report.text


def test_sampler_may_have_options_and_change_its_arrays():
    """Catches data of `verify` that a sampler spoils for the next run, and options that are refused."""

    def sampler(eps_fn, alpha_bars, start, times, eta=0.0, *, clip=None):
        x0 = GOOD(eps_fn, alpha_bars, start, times)
        for array in (alpha_bars, start, times):
            array[:] = 0
        return x0

    assert verify(sampler).passed


def test_library_of_annotations():
    """Catches a JAX or PyTorch sampler that is given arrays of NumPy because of how its start is annotated."""
    named = {"jax.Array": "jax", "jnp.ndarray": "jax", "torch.Tensor": "torch", "np.ndarray": "numpy"}
    assert {name: library_of(name) for name in named} == named
    assert library_of(jax.Array) == library_of(Float[jax.Array, "batch"]) == "jax"
    assert library_of(inspect.Parameter.empty) == library_of(np.ndarray) == "numpy"


def test_error_of_a_sampler_is_a_finding():
    """Catches a traceback in place of a report."""

    def broken(eps_fn, alpha_bars, start, times):
        raise KeyError("timesteps")

    assert "raised KeyError: 'timesteps'" in verify(broken).text
    assert "raised ValueError: the result has shape [64]" in verify(lambda e, a, x, t: x[:, 0, 0, 0]).text
    assert "the result is a tuple; return the images alone" in verify(lambda e, a, x, t: (x, 1)).text


def test_sampler_of():
    """Catches a traceback for an error of the user, and an adapter of a module that does not exist."""
    assert sampler_of("sampling.verification.mistakes:ddim") is ddim
    for source in (
        "no_such_module:f",
        "sampling.verification.mistakes:none",
        "sampling.verification.mistakes",
        "sampling.verification.mistakes:T",
    ):
        with pytest.raises(UserError, match="--source"):
            sampler_of(source)
    with pytest.raises(UserError, match=r"has the parameters \(\); a sampler takes"):
        verify(lambda: None)
    assert ADAPTERS["sampling"] == "sampling.verification.own"


def test_flows_agree_with_each_other():
    """Catches a wrong closed form. The Gaussian's flow is also integrated as a mixture of two equal components."""
    x = start(LAST, 16)[:, :4]
    twice = type(GAUSSIAN)(np.full(2, 0.5), np.repeat(GAUSSIAN.means, 2, 0), np.repeat(GAUSSIAN.variances, 2, 0))
    ends = [flow.transported(x, ALPHA_BARS[LAST], ALPHA_BARS[0]) for flow in (GAUSSIAN, twice)]
    np.testing.assert_allclose(*ends, atol=1e-10)


def test_mixture_flow_returns():
    """Catches an integration that is less accurate than the errors that it measures."""
    x = start(LAST, 16)[:, 4:]
    back = MIXTURE.transported(exact_end(LAST, 16)[:, 4:], ALPHA_BARS[0], ALPHA_BARS[LAST])
    np.testing.assert_allclose(back, x, atol=1e-8)
    assert len(ALPHA_BARS) == T


def test_diffusers_ddim_takes_a_wrong_previous_time():
    """Catches an adapter that does not run the scheduler at the given times. Needs torch and diffusers."""
    pytest.importorskip("diffusers")
    assert verify(sampler_of("diffusers:DDIMScheduler")).fault.startswith("the previous time is taken as t - T // n")
    assert verify(sampler_of("diffusers:UniPCMultistepScheduler-3")).passed
    with pytest.raises(UserError, match="no such scheduler"):
        sampler_of("diffusers:NoScheduler")


@pytest.mark.parametrize("name", ["ddpm", "ddim", "unipc_3"])
def test_own_samplers_pass(name):
    """Catches an adapter that mixes up claims, and JAX code that cannot call NumPy.

    All samplers pass (docs/bridge.md), but each takes 5 to 70 s of CPU time. test_sampling.py tests their orders.
    """
    assert verify(sampler_of(f"sampling:{name}")).passed


def test_unknown_own_sampler():
    """Catches a traceback for an unknown name."""
    with pytest.raises(UserError, match="sampling:euler: sampler 'euler' is not known"):
        sampler_of("sampling:euler")
