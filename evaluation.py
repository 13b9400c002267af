"""One evaluation run: loads the network, plans the time grid, draws images, scores them and stores the result."""

import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32
from ml_collections import ConfigDict
from tqdm import tqdm

import datasets
import likelihood
import sampling
from configs.validation import validate
from core import files, parallel, plots
from core.diffusion import Denoiser, NoiseSchedule
from core.errors import UserError
from core.moments import Moments as Moments  # public here, like frechet_distance, for users who score features
from core.shapes import HostImages, HostPixels, Images, Pixels
from images.generated import OpenedImages
from metrics import figures, results, statistics
from metrics.features import Features, classifier_path, load_features, rebatched
from metrics.frechet import Reference
from metrics.frechet import frechet_distance as frechet_distance
from metrics.labels import Labeller, load_labeller
from metrics.results import GRID_SIZE, Result, RunSettings
from metrics.scores import scores
from metrics.tally import Tally, observe, tally_images
from models import make_denoiser
from models.weights import digest
from sampling import auto_start
from sampling.auto_start import AutoStart, Comparison, Trial
from sampling.generate import generate, grid_of, record_trajectory, uses_history
from sampling.late_start import ONE, DataGaussian, DataMixture
from training import checkpoints, loop

LateStart = tuple[str, tuple[int, ...]]
"""The values of sampling.components and sampling.classes."""

SAVE_SECONDS = 180  # time between two saves of a run's partial result
PARTIAL_STATE = "part.npz"  # in the folder of an unfinished run
PARTIAL_IMAGES = "part_images.npy"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvalContext:
    """Objects that all runs of a sweep share: the network, the data's Gaussian, features and reference.

    mixtures: for each (components, classes) of the runs, the mixture on all devices and the SHA-256 of its file. The
    single Gaussian is not included.
    """

    checkpoint_step: int
    weights_sha256: str
    denoiser: Denoiser
    gaussian: DataGaussian | None = None
    gaussian_sha256: str | None = None
    mixtures: Mapping[LateStart, tuple[DataMixture, str]] = dataclasses.field(default_factory=dict)
    features: Features | None = None
    labeller: Labeller | None = None
    reference: Reference | None = None
    comparison: Comparison | None = None  # compares images for automatic starts
    eval_loss: float | None = None
    bits_per_dim: dict[str, Any] | None = None  # what likelihood.measure returns


def load_context(config: ConfigDict, workdir: Path, runs: Sequence[ConfigDict]) -> EvalContext:
    """Loads the objects that the runs share. Errors in configs and files are found before the network is loaded."""
    for run in (config, *runs):
        validate(run)
    if config.eval.enable_fid or config.eval.enable_loss or config.eval.enable_bpd:
        datasets.require_images(config, "a score, a loss or a likelihood")
    checkpoints.require(config, workdir)
    needs_gaussian = any(map(auto_start.needs_gaussian, runs))
    scored = config.eval.enable_fid
    if scored and config.eval.num_samples < 2:
        raise UserError("eval.num_samples=1 is not allowed: a covariance needs at least 2")
    if needs_gaussian:
        statistics.require_stats(config, statistics.GAUSSIAN)
    late_starts = {_late_start(run): run for run in runs if run.sampling.gls and run.sampling.components != ONE}
    for components, _ in late_starts:
        statistics.require_stats(config, statistics.mixture_kind(components))
    if scored and not config.eval.reference:
        statistics.require_stats(config, config.eval.features)
    gaussian, gaussian_sha256 = load_gaussian(config) if needs_gaussian else (None, None)
    mixtures = {late_start: load_mixture(run) for late_start, run in late_starts.items()}
    features = load_features(config) if scored else None
    labeller = load_labeller(config) if scored else None
    reference = statistics.load_reference(config, features, labeller) if scored else None
    comparison = load_comparison(config, runs, features=features, reference=reference)
    held_out = datasets.load(config, "test").images if config.eval.enable_loss else None
    coded = datasets.load(config, config.eval.bpd_dataset).images if config.eval.enable_bpd else None

    step, graphdef, ema = checkpoints.load_ema(config, workdir)
    denoiser = make_denoiser(config, graphdef, ema)
    return EvalContext(
        checkpoint_step=step,
        weights_sha256=digest(ema),
        denoiser=denoiser,
        gaussian=gaussian,
        gaussian_sha256=gaussian_sha256,
        mixtures=mixtures,
        features=features,
        labeller=labeller,
        reference=reference,
        comparison=comparison,
        eval_loss=None if held_out is None else loop.mean_loss(config, denoiser, held_out),
        bits_per_dim=None if coded is None else _bits_per_dim(config, denoiser, coded),
    )


def load_gaussian(config: ConfigDict) -> tuple[DataGaussian, str]:
    """Loads the Gaussian onto all devices; also returns the SHA-256 of its file (see `statistics.load_gaussian`)."""
    gaussian = statistics.load_gaussian(config)
    return parallel.replicate(gaussian), files.file_sha256(statistics.stats_path(config, statistics.GAUSSIAN))


def load_mixture(config: ConfigDict) -> tuple[DataMixture, str]:
    """Loads the mixture onto all devices; also returns the SHA-256 of its file (see `statistics.load_mixture`)."""
    path = statistics.stats_path(config, statistics.mixture_kind(config.sampling.components))
    return parallel.replicate(statistics.load_mixture(config)), files.file_sha256(path)


def _late_start(config: ConfigDict) -> LateStart:
    return config.sampling.components, tuple(config.sampling.classes)


def _bits_per_dim(config: ConfigDict, denoiser: Denoiser, images: HostPixels) -> dict[str, Any]:
    return likelihood.measure(config, denoiser, datasets.spread(images, config.eval.bpd_num_images))


@dataclasses.dataclass(frozen=True, eq=False)
class EvalRun:
    """One run: samples the network of a context with the settings config.sampling."""

    config: ConfigDict
    context: EvalContext

    @functools.cached_property
    def settings(self) -> RunSettings:
        """All settings that the result depends on, except those that an automatic start chooses."""
        config, context, sampling_settings = self.config, self.context, self.config.sampling
        nfe = sampling.nfe(sampling_settings.sampler, sampling_settings.n_steps)
        if nfe is not None and sampling_settings.baseline == "afs":
            nfe -= 1
        if nfe is not None and sampling_settings.guidance != 1:
            nfe *= 2
        num_samples = config.eval.num_samples
        return {
            "dataset": config.data.dataset,
            "checkpoint_step": context.checkpoint_step,
            "weights_sha256": context.weights_sha256,
            "sampler": sampling_settings.sampler,
            "n_steps": sampling_settings.n_steps,
            "nfe": nfe,
            "gls": sampling_settings.gls,
            "chooses_start": auto_start.chooses_start(config),
            "baseline": sampling_settings.baseline,
            "history": results.HISTORY if uses_history(config) else False,
            "spacing": sampling_settings.spacing,
            "clip_x0": sampling_settings.clip_x0,
            "num_samples": num_samples,
            "num_kept": num_samples if config.eval.enable_sampling else min(GRID_SIZE, num_samples),
            "seed": config.seed,
            "ema_rate": config.model.ema_rate,
            "rounding": results.ROUNDING,
            "reference_file": config.eval.reference or None,
            "classifier": context.labeller.name if context.labeller else None,
            **results.score_settings(context.features, context.reference),
            "gaussian_sha256": context.gaussian_sha256 if auto_start.needs_gaussian(config) else None,
            "eval_loss": context.eval_loss,
            "bits_per_dim": context.bits_per_dim,
            **self._mixture_settings(),
            **self._class_settings(),
            **_fixed_times(config, context.denoiser.schedule),
        }

    def _mixture_settings(self) -> RunSettings:
        """The settings of a late start from a mixture.

        The result is empty for a single Gaussian, so that results stored by older versions are found again.
        """
        if not self.config.sampling.gls or self.config.sampling.components == ONE:
            return {}
        components, classes = late_start = _late_start(self.config)
        _, sha256 = self.context.mixtures[late_start]
        return {"components": components, "mixture_sha256": sha256} | ({"classes": list(classes)} if classes else {})

    def _class_settings(self) -> RunSettings:
        """The guidance and the selected classes; empty for a network without classes."""
        if not self.config.model.label_dim:
            return {}
        settings = self.config.sampling
        return {"guidance": settings.guidance} | ({"classes": list(settings.classes)} if settings.classes else {})

    @functools.cached_property
    def mixture(self) -> DataMixture | None:
        """The distribution of the late start; None without a late start."""
        if not self.config.sampling.gls:
            return None
        if self.config.sampling.components == ONE:
            return parallel.replicate(self.context.gaussian.mixture())
        mixture, _ = self.context.mixtures[_late_start(self.config)]
        return mixture

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return results.folder_name(self.settings)

    def plan(self) -> tuple[Int32[np.ndarray, "steps"], AutoStart | None]:
        """The time grid and, if the start or the grid is automatic, the record of the choice (else None)."""
        config, context = self.config, self.context
        if not (auto_start.chooses_start(config) or auto_start.chooses_grid(config)):
            return grid_of(config, context.denoiser.schedule, config.sampling.gls), None
        chosen = auto_start.choose(
            config,
            context.denoiser,
            gaussian=context.gaussian,
            mixture=self.mixture,
            image_shape=datasets.image_shape(config),
            comparison=context.comparison,
        )
        return chosen.timesteps, chosen

    def batches(self, timesteps: Int32[np.ndarray, "steps"], first: int = 0) -> Iterator[tuple[Pixels | Images, int]]:
        """Draws the images `first` to eval.num_samples - 1; yields pairs (batch on the devices, count).

        The pairs are those of `generate`. Images are converted to uint8 pixels, latents are not. A progress bar is
        shown. Raises UserError if a sample is not finite, because the conversion would hide this.
        """
        config, num = self.config, self.config.eval.num_samples
        drawn = generate(
            config,
            self.context.denoiser,
            self.mixture,
            timesteps,
            image_shape=datasets.image_shape(config),
            num=num,
            batch_size=config.eval.batch_size,
            first=first,
        )
        with tqdm(total=num, desc=self.name, unit="image", initial=first) as progress:
            for x0, count in drawn:
                if not jnp.isfinite(x0).all():
                    raise UserError(f"{self.name}: samples hold NaN or infinity; did the training diverge?")
                yield x0 if datasets.is_latents(config) else datasets.to_uint8(x0, config.data.centered), count
                progress.update(count)

    def images(self, timesteps: Int32[np.ndarray, "steps"]) -> HostImages:
        """All eval.num_samples images, or latents, as one array in host memory."""
        return np.concatenate([parallel.all_rows(pixels)[:count] for pixels, count in self.batches(timesteps)])

    def trajectory(
        self, timesteps: Int32[np.ndarray, "steps"], num: int
    ) -> tuple[Float[np.ndarray, "nfe"], Float[np.ndarray, "nfe num height width channels"]]:
        """Returns the times of the network calls, and the x_0 predicted at each, for the first `num` images."""
        shape = datasets.image_shape(self.config)
        denoiser = self.context.denoiser
        return record_trajectory(self.config, denoiser, self.mixture, timesteps, image_shape=shape, num=num)

    def result(self, parent: Path) -> Result:
        """The result stored in a subfolder of `parent`; if there is none, calls `draw_and_score`."""
        return results.finished(self.settings, parent) or self.draw_and_score(parent)

    def draw_and_score(self, parent: Path) -> Result:
        """Draws and scores eval.num_samples images; writes samples and result.json into a subfolder of `parent`.

        An automatic start is chosen first; result.json ("auto_start") and auto_start.png describe the choice. The
        partial result is saved every SAVE_SECONDS. A killed run continues from its partial result, and its result is
        the same as without the interruption. Memory does not grow with the number of samples.
        """
        context = self.context
        folder = parent / self.name
        clock = _Clock()
        tally, clock.seconds_before = _saved_state(folder, self.settings) or (_empty_tally(context.features), 0.0)
        kept_shape = (self.settings["num_kept"], *datasets.image_shape(self.config))
        kept = _open_kept(folder, kept_shape, new=tally.count == 0)
        timesteps, chosen = self.plan()
        size = min(self.config.eval.feature_batch_size, self.config.eval.num_samples)
        for pixels, count in rebatched(self.batches(timesteps, tally.count), size):
            room = kept[tally.count : tally.count + count]
            if len(room):
                room[:] = parallel.all_rows(pixels)[: len(room)]
            observe(tally, context.features, context.labeller, pixels, count=count)
            if clock.since_save() > SAVE_SECONDS and parallel.is_first():
                kept.flush()
                _save_state(folder, self.settings, tally, clock.seconds())
                clock.saved()
        found = scores(tally, context.reference) if context.features else {"score": None}
        result = self.settings | _times_of(timesteps) | {"auto_start": chosen.facts() if chosen else None} | found
        result |= results.circumstances(clock.seconds(), self.config.eval.num_samples)
        _store(folder, result, kept)
        plots.attempt(plots.save_grid, folder / "samples.png", kept[:GRID_SIZE])
        if chosen and chosen.candidates:
            plots.attempt(figures.draw_candidates, folder / "auto_start.png", chosen)
        return result


def _fixed_times(config: ConfigDict, schedule: NoiseSchedule) -> RunSettings:
    """The first and last timestep, as far as the config determines them."""
    if auto_start.chooses_start(config):
        return {}
    if auto_start.chooses_grid(config):
        return {"t_start": config.sampling.t_start if config.sampling.gls else schedule.num_timesteps - 1}
    return _times_of(grid_of(config, schedule, config.sampling.gls))


def _times_of(timesteps: Int32[np.ndarray, "steps"]) -> RunSettings:
    return {"t_start": int(timesteps[0]), "t_last": int(timesteps[-1])}


def load_comparison(
    config: ConfigDict, runs: Sequence[ConfigDict], *, features: Features | None, reference: Reference | None
) -> Comparison | None:
    """Loads the features by which images are compared for automatic starts, or returns None if no start is automatic.

    The features are those of the scores. Without scores they are those of the data set's classifier or, if there is
    none, of fixed random convolutions.

    features, reference: the features and the reference of the scores, if images are scored.
    """
    if not any(map(auto_start.chooses_start, runs)):
        return None
    if features is None:
        config = config.copy_and_resolve_references()
        own = classifier_path(config).exists()
        config.eval.update(features="classifier" if own else "random_conv", reference="")
        if any(map(auto_start.needs_data, runs)):
            statistics.require_stats(config, config.eval.features)
        features = load_features(config)
    if reference is None and any(map(auto_start.needs_data, runs)):
        reference = statistics.load_reference(config, features)

    def extract(x0: Images) -> Float[np.ndarray, "batch dim"]:
        pixels = datasets.to_uint8(x0, config.data.centered)
        batches = rebatched([(pixels, len(pixels))], min(config.eval.feature_batch_size, len(pixels)))
        rows = [parallel.all_rows(features.extract(batch))[:count] for batch, count in batches]
        return np.concatenate(rows).astype(np.float64)

    return Comparison(extract, (reference.mean, reference.cov) if reference else None)


def trials(runs: Sequence[ConfigDict], context: EvalContext) -> list[Trial]:
    """Returns the `Trial` that draws images for each run.

    Runs with the same late start share a trial, and all trials share the stored reference images.
    """
    found: dict[LateStart, Trial] = {}
    for run in runs:
        if _late_start(run) not in found:
            found[_late_start(run)] = Trial(
                denoiser=context.denoiser,
                mixture=EvalRun(run, context).mixture,
                comparison=context.comparison,
                image_shape=datasets.image_shape(run),
                first=auto_start.first_image(run),
            )
    return [found[_late_start(run)] for run in runs]


# Partial results


class _Clock:
    """Measures the seconds of a run, including those before it was killed, and the seconds since the last save."""

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self._began = time.perf_counter()
        self._saved = self._began

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self._began

    def since_save(self) -> float:
        return time.perf_counter() - self._saved

    def saved(self) -> None:
        self._saved = time.perf_counter()


def _empty_tally(features: Features | None) -> Tally:
    return Tally(features.dim if features else 0)


def _saved_state(folder: Path, settings: RunSettings) -> tuple[Tally, float] | None:
    """The partial result of a killed run with the same settings, and its seconds; None if there is no such result."""
    if not (folder / PARTIAL_STATE).exists() or not (folder / PARTIAL_IMAGES).exists():
        return None
    stored = files.read_npz(folder / PARTIAL_STATE, required={"question", "seconds"})
    if str(stored["question"]) != json.dumps(settings):
        return None
    return Tally.of_arrays(stored), float(stored["seconds"])


def _save_state(folder: Path, settings: RunSettings, tally: Tally, seconds: float) -> None:
    facts = {"question": np.asarray(json.dumps(settings)), "seconds": np.asarray(seconds)}
    files.write_npz(folder / PARTIAL_STATE, tally.arrays() | facts)


def _open_kept(folder: Path, shape: tuple[int, ...], new: bool) -> HostPixels:
    """The array for the images to keep: a memory-mapped file on the first process, ordinary memory on the others."""
    if not parallel.is_first():
        return np.zeros(shape, np.uint8)
    if not new:
        return np.lib.format.open_memmap(folder / PARTIAL_IMAGES, "r+")
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / PARTIAL_IMAGES, "w+", np.uint8, shape)


def _store(folder: Path, result: Result, kept: HostPixels) -> None:
    """Writes samples.npz and then result.json, and removes the partial result."""
    files.write_npz(folder / "samples.npz", {"images": kept})
    files.write_json(folder / "result.json", result)
    if parallel.is_first():
        for name in (PARTIAL_STATE, PARTIAL_IMAGES):
            (folder / name).unlink(missing_ok=True)


# Images made by other software


def score_images(
    config: ConfigDict,
    *,
    features: Features,
    labeller: Labeller | None,
    reference: Reference,
    images: OpenedImages,
    folder: Path,
) -> Result:
    """Scores images made by other software; writes result.json into a subfolder named after the images."""
    began = time.perf_counter()
    tally, images_sha256 = tally_images(config, features, labeller, images)
    settings: RunSettings = {
        "dataset": config.data.dataset,
        "source": str(images.path),
        "source_sha256": images_sha256,
        "num_samples": tally.count,
        "classifier": labeller.name if labeller else None,
        **results.score_settings(features, reference),
    }
    result = settings | scores(tally, reference)
    result |= results.circumstances(time.perf_counter() - began, tally.count)
    parts = [images.path.stem, images_sha256[:8], reference.digest[:8], results.own_labels(settings)]
    files.write_json(folder / "_".join(filter(None, parts)) / "result.json", result)
    return result
