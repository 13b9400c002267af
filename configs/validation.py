"""The rules that a config must meet, checked before any work starts.

This module does not import the networks, whose libraries take a second to import, so mistakes are reported fast. The
names of networks are therefore repeated here; tests/configs/test_validation.py compares them.
"""

import itertools
import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from core.conventions import CONVENTIONS, PREDICTIONS
from core.errors import UserError
from core.paths import expanded
from datasets import LOADERS, is_latents, require_images
from sampling import SAMPLERS, applies, nfe
from sampling.auto_grid import fine_times, least_start
from sampling.auto_start import chooses_grid, chooses_start, measures_grid
from sampling.late_start import BASELINES, LABELS, ONE, forms_covariance
from sampling.time_grid import AUTO_SPACING, GAUSSIAN_SPACING, SPACINGS, starts_of

SCHEDULES = ("linear", "scaled_linear", "sigmoid", "cosine", "table", "vp", "ve", "edm", "flow")


class Rule(NamedTuple):
    """A condition on the value of a field.

    Attributes:
      allowed: the allowed values in words, as in "must be one of ...".
      holds: whether a value is allowed; may raise TypeError for a value of a wrong type.
    """

    allowed: str
    holds: Callable[[Any], bool]


def one_of(names: Collection[Any]) -> Rule:
    """The value is one of `names`."""
    return Rule(f"one of {', '.join(map(str, names))}", lambda value: value in names)


def at_least(low: float) -> Rule:
    """The value is finite and at least `low`."""
    return Rule(f"at least {low}", lambda value: low <= value < math.inf)


def above(low: float) -> Rule:
    """The value is finite and above `low`."""
    return Rule(f"above {low}", lambda value: low < value < math.inf)


def from_up_to(low: float, high: float) -> Rule:
    """The value is at least `low` and below `high`."""
    return Rule(f"from {low} up to, but not including, {high}", lambda value: low <= value < high)


def list_of(rule: Rule, least: int = 1) -> Rule:
    """The value is a list of at least `least` values that meet a rule."""
    allowed = f"a list of {least} or more, each {rule.allowed}"
    return Rule(allowed, lambda values: len(values) >= least and all(map(rule.holds, values)))


def whole(rule: Rule) -> Rule:
    """The value is an integer that meets a rule. It is for members of lists, whose types ConfigDict does not check."""
    return Rule(f"a whole number {rule.allowed}", lambda value: isinstance(value, int) and rule.holds(value))


def sweep_start() -> Rule:
    """The value is an entry of sweep.t_starts (see `sampling.time_grid.starts_of`)."""

    def holds(value: Any) -> bool:
        try:
            return bool(starts_of(value))
        except ValueError:
            return False

    return Rule("a time of at least 1, 'auto', or 'first:last:step'", holds)


def components() -> Rule:
    """The value is allowed as sampling.components, or as an entry of sweep.components."""
    return Rule(
        "'1', 'labels', or a number of clusters, such as '10'",
        lambda value: value in (ONE, LABELS) or (str(value).isdecimal() and int(value) >= 1),
    )


def one_of_schedules() -> Rule:
    """The value is one of SCHEDULES."""
    known = one_of(SCHEDULES)
    return known._replace(
        allowed=f"{known.allowed}; subvp is not a schedule of this kind: its noise has the variance (1 - alpha_bar)^2"
    )


def empty_or_file() -> Rule:
    """The value is empty or the path of an existing file."""
    return Rule("a file that exists", lambda value: not value or Path(value).expanduser().is_file())


PATHS = ("assets_dir", "data.data_dir", "data.path", "data.cache_dir", "eval.inception_weights", "eval.reference")
"""The fields that are paths, which `core.paths.expanded` must accept."""

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
    "data.num_channels": at_least(1),
    "data.held_out": from_up_to(0, 1),
    "schedule.name": one_of_schedules(),
    "schedule.sigma_min": above(0),
    "schedule.sigma_max": above(0),
    "schedule.alpha_bars": list_of(from_up_to(0, 1), least=0),
    "model.name": one_of(["ddpm", "songunet", "adm", "unet2d"]),
    "model.dtype": one_of(["float32", "bfloat16"]),
    "model.beta_min": above(0),
    "model.beta_max": above(0),
    "model.num_scales": at_least(2),
    "model.ema_rate": from_up_to(0, 1),
    "model.dropout": from_up_to(0, 1),
    "model.nf": from_up_to(1, 2**16),
    "model.patch_size": at_least(1),
    "model.prediction": one_of(PREDICTIONS),
    "model.convention": one_of(CONVENTIONS),
    "model.sigma_data": above(0),
    "model.ch_mult": list_of(whole(at_least(1))),
    "model.attn_resolutions": list_of(whole(at_least(1)), least=0),
    "model.num_res_blocks": from_up_to(1, 1000),  # a damaged file could ask for a network that takes hours to build
    "model.normalization": one_of(["GroupNorm"]),
    "model.num_groups": one_of([1, 2, 4, 8, 16, 32]),  # divisors of model.nf, a multiple of 32
    "model.nonlinearity": one_of(["swish", "relu", "elu", "lrelu"]),
    "model.label_dim": at_least(0),
    "model.null_class": at_least(-1),
    "model.augment_dim": at_least(0),
    "model.noise_mult": at_least(1),
    "model.emb_mult": at_least(1),
    "model.embedding": one_of(["positional", "fourier"]),
    "model.encoder": one_of(["standard", "residual", "skip"]),
    "model.decoder": one_of(["standard", "skip"]),
    "model.resample_filter": Rule(
        "2, 4, 6, .. numbers above 0", lambda taps: len(taps) % 2 == 0 < len(taps) and min(taps) > 0
    ),
    "model.num_heads": at_least(0),
    "model.head_channels": at_least(1),
    "model.group_channels": at_least(1),
    "model.unet2d": Rule("a JSON object", lambda text: isinstance(json.loads(text), dict)),
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
    "sampling.spacing": one_of([*SPACINGS, AUTO_SPACING, GAUSSIAN_SPACING]),
    "sampling.components": components(),
    "sampling.classes": list_of(whole(at_least(0)), least=0),
    "sampling.guidance": at_least(0),
    "sampling.baseline": one_of(["", *BASELINES]),
    "sampling.rank": at_least(1),
    "eval.checkpoint": at_least(-1),
    "eval.batch_size": at_least(1),
    "eval.num_samples": at_least(1),
    "eval.features": one_of(["classifier", "inception", "random_conv"]),
    "eval.bpd_dataset": one_of(["train", "test"]),
    "eval.bpd_num_images": at_least(2),
    "eval.feature_batch_size": at_least(1),
    "eval.inception_weights": empty_or_file(),
    "eval.reference": empty_or_file(),
    "sweep.samplers": list_of(one_of(SAMPLERS)),
    "sweep.n_steps": list_of(whole(at_least(1))),
    "sweep.t_starts": list_of(sweep_start()),
    "sweep.components": list_of(components(), least=0),
    "sweep.baselines": list_of(one_of(BASELINES), least=0),
    "analysis.num_images": at_least(8),
    "analysis.num_times": at_least(4),
    "analysis.num_eigenvalues": at_least(1),
    "analysis.n_steps": at_least(7),
    "analysis.score_samples": Rule("0, or at least 2", lambda value: value == 0 or value >= 2),
    "analysis.score_starts": list_of(whole(at_least(1))),
}


def validate(config: ConfigDict) -> None:
    """Raises UserError for the first field that breaks its rule, with its name, its value and what is allowed."""
    for field in PATHS:
        path = _value(config, field)
        _require(isinstance(path, str), f"{field}={path!r} is not allowed: it must be a path")
        expanded(path, field)
    for field, rule in RULES.items():
        value = _value(config, field)
        _require(_holds(rule, value), f"{field}={value!r} is not allowed: it must be {rule.allowed}")
    _require(
        is_latents(config) or config.data.num_channels in (1, 3),
        f"data.num_channels={config.data.num_channels} is not allowed: images have 1 or 3",
    )
    _validate_width(config)
    _validate_image_size(config)
    _validate_betas(config)
    _validate_schedule(config)
    _validate_start(config)
    _validate_auto_start(config)
    _validate_baseline(config)
    _validate_classes(config)


def _value(config: ConfigDict, field: str) -> Any:
    value = config
    for name in field.split("."):
        _require(isinstance(value, ConfigDict) and name in value, f"the config has no field {field}")
        value = value[name]
    return value


def _holds(rule: Rule, value: Any) -> bool:
    try:
        return rule.holds(value)
    except (TypeError, ValueError):  # the value is a list where a number is required, or None, or an empty list
        return False


def validate_batch(config: ConfigDict) -> None:
    """Raises UserError if a training batch cannot be divided evenly among the devices."""
    batch = config.training.batch_size
    devices = jax.device_count()
    _require(batch % devices == 0, f"training.batch_size={batch} must be a multiple of the {devices} devices")


def validate_analysis(config: ConfigDict) -> None:
    """Raises UserError if the config breaks one of the general rules, or one of the rules for --mode=analyze."""
    validate(config)
    require_images(config, "--mode=analyze")
    _require(not config.model.label_dim, "--mode=analyze is for networks without classes: model.label_dim is not 0")
    settings = config.analysis
    last = config.model.num_scales - 1
    for name in ("num_times", "n_steps"):
        value = settings[name]
        _require(value <= last, f"analysis.{name}={value} is too many: at most {last}, the last time")
    dim = config.data.image_size**2 * config.data.num_channels
    kept = dim if forms_covariance(dim) else config.sampling.rank  # number of eigenpairs of the data's Gaussian
    most = min((dim - 1) // 5, kept)  # symmetry.stability needs more than 5 basis vectors per eigenvalue
    count = settings.num_eigenvalues
    _require(count <= most, f"analysis.num_eigenvalues={count} is too many for these images: at most {most}")


def _validate_width(config: ConfigDict) -> None:
    """Checks that the groups of GroupNorm divide all numbers of channels."""
    nf = config.model.nf
    factor = 32 if config.model.name == "ddpm" else 4
    _require(nf % factor == 0, f"model.nf={nf} is not allowed: it must be a positive multiple of {factor}")


def _validate_image_size(config: ConfigDict) -> None:
    size = config.data.image_size
    halvings = _halvings(config)
    factor = config.model.patch_size * 2**halvings
    _require(
        size % factor == 0,
        f"data.image_size={size} must be a multiple of {factor}: model.patch_size is {config.model.patch_size}, and "
        "each entry of model.ch_mult after the first halves the image",
    )


def _halvings(config: ConfigDict) -> int:
    """Returns the number of times that the network halves the image."""
    if config.model.name == "unet2d":
        levels = json.loads(config.model.unet2d).get("block_out_channels")
        return len(levels) - 1 if isinstance(levels, list) else 3  # diffusers' default has 4 levels
    return len(config.model.ch_mult) - 1


def _validate_betas(config: ConfigDict) -> None:
    model = config.model
    _require(
        0 < model.beta_min <= model.beta_max < model.num_scales,
        f"model.beta_min={model.beta_min} must not be above model.beta_max={model.beta_max}, and both must be below "
        f"model.num_scales={model.num_scales}, so that every beta is between 0 and 1",
    )


def _validate_schedule(config: ConfigDict) -> None:
    settings = config.schedule
    low, high = settings.sigma_min, settings.sigma_max
    _require(low < high, f"schedule.sigma_min={low} must be below schedule.sigma_max={high}")
    if settings.name == "table":
        table = settings.alpha_bars
        _require(
            len(table) == config.model.num_scales and all(b < a for a, b in itertools.pairwise((1, *table))),
            f"schedule.alpha_bars must be {config.model.num_scales} (model.num_scales) descending numbers below 1",
        )
    if settings.zero_snr or settings.name == "flow" or (settings.name == "table" and settings.alpha_bars[-1] == 0):
        says_nothing = config.model.prediction in ("eps", "negative_eps", "score")
        _require(
            not says_nothing,
            f"model.prediction={config.model.prediction!r} does not determine x_0 where no signal is left, at the last "
            "time of this schedule: choose v, x0, flow or edm",
        )


def _validate_start(config: ConfigDict) -> None:
    last = config.model.num_scales - 1
    start = _start(config)
    reason = "; images at t = 0 are almost clean, so nothing is left to generate" if start == 0 else ""
    _require(1 <= start <= last, f"sampling.t_start={start} must be from 1 to {last}, or auto{reason}")
    n_steps = config.sampling.n_steps
    _require(
        n_steps <= start + 1,
        f"sampling.n_steps={n_steps} is too many from t = {start}: each step has its own t, so at most {start + 1}",
    )


def _start(config: ConfigDict) -> int:
    """The time at which sampling starts; for an automatic start, which is not known yet, the last time."""
    if config.sampling.gls and not chooses_start(config):
        return config.sampling.t_start
    return config.model.num_scales - 1


def _validate_baseline(config: ConfigDict) -> None:
    settings = config.sampling
    baseline = settings.baseline
    if baseline in ("isotropic", "no_history"):
        _require(settings.gls, f"sampling.baseline={baseline!r} is a kind of late start: it needs --gls")
    if baseline in ("leading", "afs"):
        _require(not settings.gls, f"sampling.baseline={baseline!r} is a start from pure noise: it does not take --gls")
    if baseline == "leading":
        _require(
            not chooses_grid(config),
            f"sampling.baseline='leading' has a fixed start: sampling.spacing must not be {settings.spacing!r}",
        )
    solvers = [f"{name} from {row.history_from}" for name, row in SAMPLERS.items() if row.history_from is not None]
    reasons = {
        "leading": "with one step it would start at t = 0",
        "afs": "it replaces the first of several steps, and ode is adaptive",
        "no_history": f"{', '.join(solvers)} steps on: only these samplers use a history",
    }
    _require(
        applies(baseline, settings.sampler, settings.n_steps),
        f"sampling.baseline={baseline!r} has no effect on {settings.sampler} with n_steps={settings.n_steps}: "
        f"{reasons.get(baseline)}",
    )


def _validate_classes(config: ConfigDict) -> None:
    settings = config.sampling
    model = config.model
    if not model.label_dim:
        _require(
            not settings.classes or settings.components == LABELS,
            f"sampling.classes={settings.classes} needs sampling.components='labels', so that components are "
            f"classes; it is {settings.components!r}",
        )
        _require(
            settings.guidance == 1,
            f"sampling.guidance={settings.guidance} needs a network with classes: model.label_dim is 0",
        )
        return
    _require(
        model.name != "ddpm", f"model.label_dim={model.label_dim} is not for model.name='ddpm', which has no classes"
    )
    unknown = [label for label in settings.classes if label >= model.label_dim or label == model.null_class]
    _require(
        not unknown, f"sampling.classes has {unknown}, which are not among the network's {model.label_dim} classes"
    )
    _require(
        settings.guidance == 1 or model.null_class >= 0,
        f"sampling.guidance={settings.guidance} needs a network that was trained with a null class, named by "
        "model.null_class; without one it must be 1",
    )
    _require(
        settings.sampler != "ode",
        "sampling.sampler='ode' integrates each image alone and takes no labels: choose another for this network",
    )
    _require(
        not (config.eval.enable_loss or config.eval.enable_bpd),
        "eval.enable_loss and eval.enable_bpd are for networks without classes: model.label_dim is not 0",
    )
    _validate_start_of_classes(config)


def _validate_start_of_classes(config: ConfigDict) -> None:
    settings = config.sampling
    if not settings.gls:
        return
    _require(
        settings.guidance == 1,
        f"sampling.guidance={settings.guidance} and --gls exclude each other: guided images are not distributed as "
        "their class, so the Gaussian of the class is not where they are at the start",
    )
    _require(
        settings.components in (ONE, LABELS),
        f"sampling.components={settings.components!r} is not for a network with classes, whose images would start from "
        "clusters of other classes: choose 'labels' or '1'",
    )


def _validate_auto_start(config: ConfigDict) -> None:
    """Checks the requirements of `auto_start.choose`, if the start is automatic or the grid is computed."""
    settings = config.sampling
    if not chooses_start(config) and not chooses_grid(config):
        return
    name = "sampling.t_start=-1 (auto)" if chooses_start(config) else f"sampling.spacing={settings.spacing!r}"
    if chooses_start(config):
        require_images(config, name)
    _require(
        nfe(settings.sampler, settings.n_steps) is not None,
        f"{name} needs a sampler with a fixed number of network calls: {settings.sampler} is adaptive",
    )
    if measures_grid(config):
        _validate_auto_grid(config)


def _validate_auto_grid(config: ConfigDict) -> None:
    n_steps = config.sampling.n_steps
    times = fine_times(config.model.num_scales)
    most = len(times) // 2
    _require(n_steps <= most, f"sampling.n_steps={n_steps} is too many for spacing='auto': at most {most}")
    start = _start(config)
    least = least_start(times, n_steps)
    _require(
        start >= least,
        f"sampling.t_start={start} is too late for {n_steps} steps and spacing='auto': at least {least}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
