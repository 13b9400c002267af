"""What a config may say: every rule in one table, checked before any work.

To answer a mistake at once this imports nothing of the networks, whose libraries take a second: their names stand here
as well, and tests/test_validation.py compares them.
"""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from core.errors import UserError
from datasets import LOADERS
from sampling import SAMPLERS, applies, nfe
from sampling.auto_grid import fine_times, least_start
from sampling.late_start import BASELINES, EXACT_UP_TO
from sampling.time_grid import AUTO_SPACING, AUTO_START, SPACINGS, starts_of


class Rule(NamedTuple):
    allowed: str
    holds: Callable[[Any], bool]


def one_of(names: Collection) -> Rule:
    return Rule(f"one of {', '.join(map(str, names))}", lambda value: value in names)


def at_least(low: float) -> Rule:
    return Rule(f"at least {low}", lambda value: low <= value < math.inf)


def above(low: float) -> Rule:
    return Rule(f"above {low}", lambda value: low < value < math.inf)


def from_up_to(low: float, high: float) -> Rule:
    """The upper end is excluded."""
    return Rule(f"from {low} up to, but not, {high}", lambda value: low <= value < high)


def list_of(rule: Rule, least: int = 1) -> Rule:
    allowed = f"a list of {least} or more, each {rule.allowed}"
    return Rule(allowed, lambda values: len(values) >= least and all(map(rule.holds, values)))


def whole(rule: Rule) -> Rule:
    """For the members of lists, whose type the config does not fix."""
    return Rule(f"a whole number {rule.allowed}", lambda value: isinstance(value, int) and rule.holds(value))


def sweep_start() -> Rule:
    def holds(value: Any) -> bool:
        try:
            return bool(starts_of(value))
        except ValueError:
            return False

    return Rule("a time of at least 1, 'auto', or 'first:last:step'", holds)


def empty_or_file() -> Rule:
    return Rule("a file that is there", lambda value: not value or Path(value).is_file())


RULES = {
    "seed": from_up_to(0, 2**32),
    "training.batch_size": at_least(1),
    "training.n_iters": at_least(1),
    "training.weighting": at_least(0),
    "training.log_freq": at_least(1),
    "training.eval_freq": at_least(0),
    "training.snapshot_freq": at_least(1),
    "training.snapshot_freq_for_preemption": at_least(1),
    "training.max_to_keep": at_least(1),
    "training.sampling_size": at_least(1),
    "data.dataset": one_of(LOADERS),
    "data.image_size": at_least(1),
    "data.num_channels": one_of((1, 3)),
    "data.held_out": from_up_to(0, 1),
    "model.name": one_of(["ddpm"]),
    "model.dtype": one_of(["float32", "bfloat16"]),
    "model.beta_min": above(0),
    "model.beta_max": above(0),
    "model.num_scales": at_least(2),
    "model.ema_rate": from_up_to(0, 1),
    "model.dropout": from_up_to(0, 1),
    "model.nf": Rule("a positive multiple of 32", lambda value: value > 0 and value % 32 == 0),
    "model.patch_size": at_least(1),
    "model.prediction": one_of(["eps", "v"]),
    "model.ch_mult": list_of(whole(at_least(1))),
    "model.attn_resolutions": list_of(whole(at_least(1)), least=0),
    "model.num_res_blocks": at_least(1),
    "model.normalization": one_of(["GroupNorm"]),
    "model.num_groups": one_of([1, 2, 4, 8, 16, 32]),  # so that they divide nf
    "model.nonlinearity": one_of(["swish", "relu", "elu", "lrelu"]),
    "optim.optimizer": one_of(["Adam", "Muon"]),
    "optim.lr": above(0),
    "optim.beta1": from_up_to(0, 1),
    "optim.eps": above(0),
    "optim.weight_decay": at_least(0),
    "optim.warmup": at_least(0),
    "optim.schedule": one_of(["constant", "cosine"]),
    "optim.grad_clip": above(0),
    "sampling.sampler": one_of(SAMPLERS),
    "sampling.n_steps": at_least(1),
    "sampling.spacing": one_of([*SPACINGS, AUTO_SPACING]),
    "sampling.baseline": one_of(["", *BASELINES]),
    "sampling.rank": at_least(1),
    "eval.checkpoint": at_least(-1),
    "eval.batch_size": at_least(1),
    "eval.num_samples": at_least(1),
    "eval.features": one_of(["classifier", "inception"]),
    "eval.bpd_dataset": one_of(["train", "test"]),
    "eval.bpd_num_images": at_least(2),
    "eval.feature_batch_size": at_least(1),
    "eval.inception_weights": empty_or_file(),
    "eval.reference": empty_or_file(),
    "sweep.samplers": list_of(one_of(SAMPLERS)),
    "sweep.n_steps": list_of(whole(at_least(1))),
    "sweep.t_starts": list_of(sweep_start()),
    "sweep.baselines": list_of(one_of(BASELINES), least=0),
    "analysis.num_images": at_least(8),
    "analysis.num_times": at_least(4),
    "analysis.num_eigenvalues": at_least(1),
    "analysis.n_steps": at_least(7),
    "analysis.score_samples": Rule("0, or at least 2", lambda value: value == 0 or value >= 2),
    "analysis.score_starts": list_of(whole(at_least(1))),
}


def validate(config: ConfigDict) -> None:
    """Raises UserError at the first field that breaks its rule: the field, its value and what is allowed."""
    for field, rule in RULES.items():
        value = config
        for name in field.split("."):
            _require(isinstance(value, ConfigDict) and name in value, f"the config has no field {field}")
            value = value[name]
        _require(_holds(rule, value), f"{field}={value!r} is not allowed: it must be {rule.allowed}")
    _validate_network(config)
    _validate_start(config)
    _validate_baseline(config)


def _holds(rule: Rule, value: Any) -> bool:
    try:
        return rule.holds(value)
    except TypeError:  # a list where a number belongs, or None
        return False


def validate_batch(config: ConfigDict) -> None:
    """Raises UserError where the devices cannot share a training batch evenly."""
    batch, devices = config.training.batch_size, jax.device_count()
    _require(batch % devices == 0, f"training.batch_size={batch} must be a multiple of the {devices} devices")


def validate_analysis(config: ConfigDict) -> None:
    """Raises UserError for what only --mode=analyze asks of its config."""
    validate(config)
    settings, last = config.analysis, config.model.num_scales - 1
    for name in ("num_times", "n_steps"):
        value = settings[name]
        _require(value <= last, f"analysis.{name}={value} is too many: at most {last}, the last time")
    dim = config.data.image_size**2 * config.data.num_channels
    most = min((dim - 1) // 5, config.sampling.rank if dim > EXACT_UP_TO else dim)
    count = settings.num_eigenvalues
    _require(count <= most, f"analysis.num_eigenvalues={count} is too many for these images: at most {most}")


def _validate_network(config: ConfigDict) -> None:
    size, halvings, model = config.data.image_size, len(config.model.ch_mult) - 1, config.model
    factor = model.patch_size * 2**halvings
    _require(
        size % factor == 0,
        f"data.image_size={size} must be a multiple of {factor}: model.patch_size={model.patch_size}, and each further "
        "ch_mult halves the image",
    )
    _require(
        0 < model.beta_min <= model.beta_max < model.num_scales,
        f"model.beta_min={model.beta_min} and beta_max={model.beta_max} must rise and stay below num_scales="
        f"{model.num_scales}, so that every beta lies between 0 and 1",
    )


def _validate_start(config: ConfigDict) -> None:
    """A late start at t = 0 is refused: its images are clean but for 1.3 grey levels of noise (linear schedule)."""
    settings, last = config.sampling, config.model.num_scales - 1
    chosen = settings.gls and settings.t_start == AUTO_START
    start = settings.t_start if settings.gls and not chosen else last
    clean = "; at t = 0 images are clean, and nothing is left to generate" if start == 0 else ""
    _require(1 <= start <= last, f"sampling.t_start={start} must be from 1 to {last}, or auto{clean}")
    _require(
        settings.n_steps <= start + 1,
        f"sampling.n_steps={settings.n_steps} is too many from t = {start}: each step has its own t, so at most "
        f"{start + 1}",
    )
    _validate_trial(config, start, chosen)


def _validate_baseline(config: ConfigDict) -> None:
    settings, baseline = config.sampling, config.sampling.baseline
    late = f"sampling.baseline={baseline!r} is a kind of late start: it needs --gls"
    _require(baseline not in ("isotropic", "no_history") or settings.gls, late)
    _require(baseline != "afs" or not settings.gls, f"sampling.baseline={baseline!r} is a full start: no --gls")
    needs = {
        "afs": "it replaces the first of several steps, and ode is adaptive",
        "no_history": ", ".join(f"{name} from {s.history_from}" for name, s in SAMPLERS.items() if s.history_from)
        + " steps on have a history to do without",
    }
    _require(
        applies(baseline, settings.sampler, settings.n_steps),
        f"sampling.baseline={baseline!r} changes nothing of {settings.sampler} with n_steps={settings.n_steps}: "
        f"{needs.get(baseline)}",
    )


def _validate_trial(config: ConfigDict, start: int, chosen: bool) -> None:
    """What `pilot.choose` can do nothing with."""
    settings, by_errors = config.sampling, config.sampling.spacing == AUTO_SPACING
    if not (chosen or by_errors):
        return
    name = "sampling.t_start=-1 (auto)" if chosen else "sampling.spacing='auto'"
    adaptive = nfe(settings.sampler, settings.n_steps) is None
    _require(
        not adaptive, f"{name}: {settings.sampler} is adaptive, with no number of calls to weigh starts or grids by"
    )
    if by_errors:
        times = fine_times(config.model.num_scales)
        _require(
            settings.n_steps <= len(times) // 2,
            f"sampling.n_steps={settings.n_steps} is too many for spacing='auto': at most {len(times) // 2}",
        )
        least = least_start(times, settings.n_steps)
        _require(
            start >= least,
            f"sampling.t_start={start} is too late for {settings.n_steps} steps and spacing='auto': at least {least}",
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
