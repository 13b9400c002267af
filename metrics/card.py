"""Evaluation report: scores and the settings needed to reproduce them."""

from collections.abc import Callable
from typing import Any

from metrics.kid_prdc import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, SUBSETS
from metrics.results import Result, components_label
from metrics.tally import GROUPS

Row = tuple[str, str]
"""A name and a value, as printed."""


def card(result: Result) -> str:
    """The report of a result as text: the scores with their error bars, then the settings they were computed with."""
    rows = []
    if result["score"] is not None:
        rows += [*_score_rows(result), ("", "")]
    rows += _samples_rows(result)
    if "sampler" in result:  # not for images made by other software
        rows += _sampling_rows(result)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows)


def _score_text(result: Result) -> str:
    return _with_error(result["score"], result["score_error"], f"jackknife, {GROUPS} groups")


def _limit_text(result: Result) -> str:
    return _with_error(result["score_at_infinity"], result["score_error"], "the same")


def _kid_text(result: Result) -> str:
    subsets = f"over {SUBSETS} subsets of {result['kid_subset_size']}"
    return _with_error(result["kid"], result["kid_std"], f"standard deviation {subsets}")


def _with_error(value: float, error: float | None, kind: str) -> str:
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g} ({kind})"


def _histogram_text(result: Result) -> str:
    return " ".join(f"{100 * share:.1f}" for share in result["label_histogram"])


SCORE_ROWS: dict[str, tuple[str, str | Callable[[Result], str]]] = {
    "score": ("{score_name}", _score_text),
    "score_at_infinity": ("for infinitely many samples", _limit_text),
    "kid": ("KID, same features", _kid_text),
    "precision": (f"precision, k = {PRECISION_NEIGHBOURS}", "{precision:.4f}"),
    "recall": (f"recall, k = {PRECISION_NEIGHBOURS}", "{recall:.4f}"),
    "density": (f"density, k = {DENSITY_NEIGHBOURS}", "{density:.4f}"),
    "coverage": (f"coverage, k = {DENSITY_NEIGHBOURS}", "{coverage:.4f}"),
    "label_entropy": ("label entropy", "{label_entropy:.3f} bits, the data's {data_label_entropy:.3f}"),
    "label_distance": ("label distance", "{label_distance:.4f} (total variation)"),
    "label_histogram": ("labels, %", _histogram_text),
}
"""Maps a field of the result to the name and the value that are printed.

{field} in a text is replaced by the value of that field. A field that is missing or None is not printed.
"""


def _score_rows(result: Result) -> list[Row]:
    rows = []
    for field, (name, text) in SCORE_ROWS.items():
        if result.get(field) is not None:
            value = text(result) if callable(text) else text.format(**result)
            rows.append((name.format(**result), value))
    return rows


def _samples_rows(result: Result) -> list[Row]:
    """Rows on the samples and, if they are scored, on the reference and the features."""
    source = result.get("source") or f"seed {result['seed']}"
    rows = [("samples", f"{result['num_samples']}, {source}")]
    if result["score"] is not None:
        rows += [
            ("against", f"{result['reference']} (SHA-256 {result['reference_sha256'][:16]})"),
            ("features", f"{result['features']} (SHA-256 {result['features_sha256'][:16]})"),
            ("resize", result["resize"]),
        ]
    return rows


def _sampling_rows(result: Result) -> list[Row]:
    nfe = result["nfe"] or "adaptive"
    clipped = "clipped" if result["clip_x0"] else "not clipped"
    weights = f"EMA {result['ema_rate']} (SHA-256 {result['weights_sha256'][:16]})"
    return [
        ("rounding", result["rounding"]),
        ("sampler", f"{result['sampler']}, n = {result['n_steps']}, NFE {nfe}, predicted x_0 {clipped}"),
        ("time grid", f"{result['spacing']}, t = {result['t_start']} to {result['t_last']}, {_start_text(result)}"),
        ("weights", f"step {result['checkpoint_step']}, {weights}"),
    ]


def _start_text(result: Result) -> str:
    text = "from pure noise"
    if result["gls"]:
        mixture = components_label(result)
        text = f"late start from a mixture ({mixture})" if mixture else "Gaussian late start"
    if result["baseline"]:
        text += f" ({result['baseline']})"
    if result["auto_start"]:
        text += _cost_text(result["auto_start"])
    return text


def _cost_text(auto_start: dict[str, Any]) -> str:
    calls = auto_start["network_calls"]
    return f", chosen automatically with {calls} network calls ({auto_start['share_of_evaluation']:.1%} more)"
