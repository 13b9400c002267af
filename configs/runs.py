"""The configs of the runs of a sweep."""

import itertools
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from sampling import applies
from sampling.time_grid import AUTO_START, starts_of


def sweep_configs(
    config: ConfigDict, n_steps: Sequence[int], t_starts: Sequence[int], baselines: Sequence[str] = ()
) -> list[ConfigDict]:
    """One config for every combination of sampler (from config.sweep), number of steps and start, in this order.

    For each sampler and n_steps, starts from pure noise come before late starts. Baselines come after the runs with
    which they are compared, and are left out if they do not change the result (see `sampling.applies`). Late starts are
    repeated for every entry of config.sweep.components.
    """
    kinds = ["", *baselines]
    full = [{"gls": False, "baseline": kind} for kind in ("", "leading", "afs") if kind in kinds]
    late = [
        {"gls": True, "baseline": kind, "components": components, "t_start": t_start}
        for components in components_of(config)
        for kind in ("", "isotropic", "no_history")
        if kind in kinds
        for t_start in t_starts
    ]
    configs = []
    for sampler, steps, start in itertools.product(config.sweep.samplers, n_steps, full + late):
        if applies(start["baseline"], sampler, steps):
            copy = config.copy_and_resolve_references()
            copy.sampling.update(sampler=sampler, n_steps=steps, **start)
            configs.append(copy)
    return configs


def plan_configs(config: ConfigDict, steps: Mapping[str, int], components: Sequence[str]) -> list[ConfigDict]:
    """Returns one config with an automatic start for each pair of a sampler and a value of sampling.components.

    steps: the number of steps of each sampler.
    """
    configs = []
    for (sampler, n_steps), entry in itertools.product(steps.items(), components):
        copy = config.copy_and_resolve_references()
        copy.sampling.update(sampler=sampler, n_steps=n_steps, components=entry, gls=True, t_start=AUTO_START)
        copy.sampling.update(baseline="", classes=())
        configs.append(copy)
    return configs


def components_of(config: ConfigDict) -> list[str]:
    """The values of sampling.components in the late starts of a sweep, without duplicates."""
    entries = config.sweep.components or (config.sampling.components,)
    return list(dict.fromkeys(map(str, entries)))


def expand_starts(entries: Sequence[int | str]) -> list[int]:
    """All starts in the entries of config.sweep.t_starts, without duplicates; `starts_of` expands an entry."""
    return list(dict.fromkeys(start for entry in entries for start in starts_of(entry)))


def without_scores(config: ConfigDict, num: int) -> ConfigDict:
    """A copy of the config for drawing `num` images without scores. It needs statistics only for a late start."""
    config = config.copy_and_resolve_references()
    config.eval.update(enable_fid=False, enable_loss=False, enable_bpd=False, num_samples=num)
    return config
