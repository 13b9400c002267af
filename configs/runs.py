"""The configs of a sweep's runs."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from sampling import applies
from sampling.time_grid import starts_of


def sweep_configs(
    config: ConfigDict, n_steps: Sequence[int], t_starts: Sequence[int], baselines: Sequence[str] = ()
) -> list[ConfigDict]:
    """A config for every sampler of config.sweep, n_steps and start; the start from pure noise comes first.

    A baseline is left out where it changes nothing (see `sampling.applies`).
    """
    full, late = [{"gls": False}], [{"gls": True, "t_start": t_start} for t_start in t_starts]
    starts = []
    for kind, rivals in ((full, ("afs",)), (late, ("isotropic", "no_history"))):
        for baseline in ("", *[rival for rival in rivals if rival in baselines]):
            starts += [start | {"baseline": baseline} for start in kind]
    configs = []
    for sampler in config.sweep.samplers:
        for steps in n_steps:
            for start in (start for start in starts if applies(start["baseline"], sampler, steps)):
                copy = config.copy_and_resolve_references()
                copy.sampling.update(sampler=sampler, n_steps=steps, **start)
                configs.append(copy)
    return configs


def expand_starts(entries: Sequence[int | str]) -> list[int]:
    """The starts of config.sweep.t_starts, each once."""
    return list(dict.fromkeys(start for entry in entries for start in starts_of(entry)))


def unscored(config: ConfigDict, num: int) -> ConfigDict:
    """Pictures need no statistics but a late start's."""
    config = config.copy_and_resolve_references()
    config.eval.update(enable_fid=False, enable_loss=False, enable_bpd=False, num_samples=num)
    return config
