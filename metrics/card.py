"""Evaluation report: scores and the settings needed to reproduce them."""

from typing import Any

from metrics.kid_prdc import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, SUBSETS
from metrics.results import Result
from metrics.tally import GROUPS


def card(result: Result) -> str:
    """The scores of a result with their error bars, and under them how they were made, for people."""
    rows = [*_score_rows(result), ("", "")] if result["score"] is not None else []
    rows += _protocol_rows(result)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows)


def _score_rows(result: Result) -> list[tuple[str, str]]:
    rows = [(result["score_name"], _with_error(result["score"], result["score_error"], f"jackknife, {GROUPS} groups"))]
    if (limit := result["score_at_infinity"]) is not None:
        rows.append(("for infinitely many samples", _with_error(limit, result["score_error"], "the same")))
    if result["num_compared"] is not None:
        subsets = f"over {SUBSETS} subsets of {result['kid_subset_size']}"
        rows += [
            ("KID, same features", _with_error(result["kid"], result["kid_std"], f"standard deviation {subsets}")),
            *_pair(result, "precision", "recall", PRECISION_NEIGHBOURS),
            *_pair(result, "density", "coverage", DENSITY_NEIGHBOURS),
        ]
    if "label_entropy" in result:
        bits = f"{result['label_entropy']:.3f} bits, the data's {result['data_label_entropy']:.3f}"
        shares = " ".join(f"{100 * share:.1f}" for share in result["label_histogram"])
        rows += [
            ("label entropy", bits),
            ("label distance", f"{result['label_distance']:.4f} (total variation)"),
            ("labels, %", shares),
        ]
    return rows


def _with_error(value: float, error: float | None, kind: str) -> str:
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g} ({kind})"


def _pair(result: Result, first: str, second: str, k: int) -> list[tuple[str, str]]:
    return [(f"{name}, k = {k}", f"{result[name]:.4f}") for name in (first, second)]


def _trial(choice: dict[str, Any]) -> str:
    return f", chosen by a trial of {choice['network_calls']} network calls ({choice['share_of_evaluation']:.1%} more)"


def _protocol_rows(result: Result) -> list[tuple[str, str]]:
    """Of those facts that the result has; images from elsewhere have no sampler."""
    rows = [("samples", f"{result['num_samples']}, {result.get('source') or 'seed {}'.format(result['seed'])}")]
    if result["score"] is not None:
        rows += [
            ("against", f"{result['reference']} (SHA-256 {result['reference_sha256'][:16]})"),
            ("features", f"{result['features']} (SHA-256 {result['features_sha256'][:16]})"),
            ("resize", result["resize"]),
        ]
    if "sampler" in result:
        nfe = result["nfe"] or "adaptive"
        clipped = "clipped" if result["clip_x0"] else "not clipped"
        start = "Gaussian late start" if result["gls"] else "from pure noise"
        start += f" ({result['baseline']})" if result["baseline"] else ""
        start += _trial(result["auto_start"]) if result["auto_start"] else ""
        weights = f"EMA {result['ema_rate']} (SHA-256 {result['weights_sha256'][:16]})"
        rows += [
            ("rounding", result["rounding"]),
            ("sampler", f"{result['sampler']}, n = {result['n_steps']}, NFE {nfe}, predicted x_0 {clipped}"),
            ("time grid", f"{result['spacing']}, t = {result['t_start']} to {result['t_last']}, {start}"),
            ("weights", f"step {result['checkpoint_step']}, {weights}"),
        ]
    return rows
