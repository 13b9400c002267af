"""Noise schedules by name, against the tables of diffusers and OpenAI."""

from pathlib import Path

import jax
import numpy as np
import pytest

from configs.default import get_default_config
from configs.validation import SCHEDULES, validate
from core.errors import UserError
from core.schedules import NoiseSchedule, rho_sigmas
from models import SCHEDULES as FUNCTIONS
from models import make_schedule

FLOAT32 = 5e-7  # diffusers computes its tables in float32
SINGLE = {"schedule.single_precision": True}
STABLE = {"model.beta_min": 0.85, "model.beta_max": 12.0}


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "data/schedules.npz") as file:
        return dict(file)


def config_of(name: str, **fields) -> object:
    config = get_default_config()
    config.schedule.name = name
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    ("config", "table", "tolerance"),
    [
        (config_of("linear"), "alpha_bar_openai_linear_1000_float64", 1e-10),
        (config_of("cosine", **{"model.num_scales": 4000}), "alpha_bar_openai_cosine_4000_float64", 1e-10),
        (config_of("linear"), "alpha_bar_linear", FLOAT32),
        (config_of("cosine"), "alpha_bar_squaredcos_cap_v2", FLOAT32),
        (config_of("scaled_linear", **STABLE), "alpha_bar_scaled_linear", FLOAT32),
        (config_of("sigmoid"), "alpha_bar_sigmoid", FLOAT32),
        (config_of("linear", **SINGLE), "alpha_bar_linear", 1e-10),
        (config_of("cosine", **SINGLE), "alpha_bar_squaredcos_cap_v2", 1e-10),
        (config_of("scaled_linear", **STABLE, **SINGLE), "alpha_bar_scaled_linear", 1e-10),
        (config_of("sigmoid", **SINGLE), "alpha_bar_sigmoid", 1e-10),
        (config_of("linear", **{"schedule.zero_snr": True}), "alpha_bar_linear_zero_snr", FLOAT32),
    ],
)
def test_tables_of_others(golden, config, table, tolerance):
    """Catches a wrong spacing of the betas, a missing cap, and a rescaling of ab instead of sqrt(ab)."""
    np.testing.assert_allclose(make_schedule(config).alpha_bars, golden[table], rtol=0, atol=tolerance)


def test_edm_has_the_sigmas_of_karras(golden):
    """Catches a wrong rho, and sigmas in the wrong order."""
    expected = golden["edm_sigmas_18_rho7"][-2::-1]  # ascending, without the last 0
    np.testing.assert_allclose(rho_sigmas(0.002, 80, 18), expected, rtol=1e-6)
    config = config_of("edm", **{"model.num_scales": 18})
    with jax.enable_x64(True):
        np.testing.assert_allclose(make_schedule(config).noise_ratio(np.arange(18)), expected, rtol=1e-6)


def test_flow_noise_is_a_straight_line(golden):
    """Catches signal and noise exchanged, and times that are one step off."""
    u = golden["flow_10_shift1p0_sigmas"][1:-1].astype(np.float64)  # without the ends, where no signal or noise is left
    with jax.enable_x64(True):
        ratio = make_schedule(config_of("flow")).noise_ratio(np.rint(1000 * u) - 1)
    np.testing.assert_allclose(ratio / (1 + ratio), u, rtol=1e-6)


def test_continuous_vp_is_the_integral_of_beta():
    """Catches a factor of 2 in the exponent."""
    u = np.arange(1, 1001) / 1000
    beta = 0.1 + 19.9 * u
    integral = np.cumsum((beta + beta - 0.0199) / 2 / 1000)  # the trapezoidal rule, exact for a line
    np.testing.assert_allclose(make_schedule(config_of("vp")).alpha_bars, np.exp(-integral), rtol=1e-10)


def test_table_and_sigmas_give_back_what_they_were_made_from():
    """Catches betas that do not match the alpha_bars."""
    schedule = NoiseSchedule.from_alpha_bars([0.9, 0.5, 0.1])
    np.testing.assert_allclose(schedule.alpha_bars, [0.9, 0.5, 0.1], rtol=1e-14)
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), [0.9, 0.5, 0.1], rtol=1e-14)
    with jax.enable_x64(True):
        ratio = NoiseSchedule.from_sigmas([0.02, 1, 100]).noise_ratio(np.arange(-1, 3))
    np.testing.assert_allclose(ratio, [0, 0.02, 1, 100], rtol=1e-12)


def test_zero_terminal_snr_stays_finite():
    """Catches infinite or undefined values where the signal is zero."""
    schedule = make_schedule(config_of("linear", **{"schedule.zero_snr": True}))
    assert schedule.alpha_bars[-1] == 0
    for values in (schedule.noise_ratio(999), schedule.half_log_snr(999), schedule.alpha_bar(998.5)):
        assert np.isfinite(values)


def test_every_schedule_is_named_and_descends(golden):
    """Catches a name that validation does not know, and a table that is not monotonic."""
    assert set(SCHEDULES) == set(FUNCTIONS)
    for name in SCHEDULES:
        config = config_of(name, **{"model.prediction": "v"})
        if name == "table":
            config.schedule.alpha_bars = tuple(np.linspace(0.999, 0.001, 1000).tolist())
        validate(config)
        schedule = make_schedule(config)
        assert len(schedule.alpha_bars) == 1000
        assert (np.diff(schedule.alpha_bars) < 0).all()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (config_of("subvp"), "subvp is not a schedule of this kind"),
        (config_of("flow"), "choose v, x0, flow or edm"),
        (config_of("table"), "must be 1000"),
        (config_of("ve", **{"schedule.sigma_max": 0.001}), "must be below"),
    ],
)
def test_refusals(config, says):
    """Catches a schedule on which x_0 cannot be predicted, and sub-VP, whose noise schedule is not supported."""
    with pytest.raises(UserError, match=says):
        validate(config)
