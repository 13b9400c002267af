"""`verify` on samplers in NumPy that are correct, or have a known mistake."""

import itertools

import numpy as np
import pytest

from core.errors import UserError
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

    assert results(verify(ancestral(1.0))) == {"network calls": True, "mean and covariance": True}
    assert results(verify(ancestral(0.5))) == {"network calls": True, "mean and covariance": False}


def test_result_that_depends_on_the_batch_fails():
    """Catches a comparison of a batch with itself."""
    good = as_sampler()

    def centred(eps_fn, alpha_bars, start, times):
        x0 = good(eps_fn, alpha_bars, start, times)
        return x0 + 1e-3 * x0.mean(axis=0)

    assert [check for check, passed in results(verify(centred)).items() if passed is False] == ["repeated, other batch"]


def test_ignored_times_are_reported():
    """Catches a sampler that ignores the given times but makes the correct number of calls."""
    good = as_sampler()
    report = verify(lambda eps_fn, alpha_bars, start, times: good(eps_fn, alpha_bars, start, np.maximum(times - 3, 0)))
    assert "called at 637 where the times are 640" in report.text


def test_error_of_a_sampler_is_a_finding():
    """Catches a traceback in place of a report."""

    def broken(eps_fn, alpha_bars, start, times):
        raise KeyError("timesteps")

    assert "raised KeyError: 'timesteps'" in verify(broken).text
    assert "raised ValueError: the result has shape [64]" in verify(lambda e, a, x, t: x[:, 0, 0, 0]).text


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
    with pytest.raises(UserError, match="takes 0 arguments"):
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


@pytest.mark.parametrize("name", ["ddim", "unipc_3", "ode"])
def test_own_samplers_pass(name):
    """Catches a sampler of this project with too low an order, and JAX code that cannot call NumPy."""
    assert verify(sampler_of(f"sampling:{name}")).passed


def test_unknown_own_sampler():
    """Catches a traceback for an unknown name."""
    with pytest.raises(UserError, match="sampling:euler: sampler 'euler' is not known"):
        sampler_of("sampling:euler")
