"""Folders of diffusers: their layouts in downloads, and schedulers that are accepted or refused."""

import json
import shutil
import struct
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from core.files import write_json
from models.diffusers_folder import STEM, WEIGHTS
from models.diffusers_schedule import SCHEDULER, check_schedulers, scheduler_settings
from models.foreign import export_diffusers, load_foreign
from tests.models.test_foreign import TINY, bits, make_config, make_params, refusal
from tests.torch_pickles import write_state_dict

PLACES = (".", "scheduler", "..", "../scheduler", "../../scheduler")


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """Writes the folder of a network of TINY, with the layout of the hub."""
    folder = tmp_path_factory.mktemp("hub") / "hub"
    export_diffusers(folder, make_config(TINY), make_params(make_config(TINY), 1))
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prediction_type": "v_prediction"}, "prediction_type is 'v_prediction', but 'epsilon' by config.model.pred"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"beta_schedule": "scaled_linear"}, "beta_schedule is 'scaled_linear', but 'linear' by config.schedule.name"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"beta_start": 0.00085}, "beta_start is 0.00085, but 0.0001 by config.model.beta_min / num_scales"),
        ({"beta_end": 0.012}, "beta_end is 0.012, but 0.02 by config.model.beta_max / num_scales"),
        ({"num_train_timesteps": 4000}, "num_train_timesteps is 4000, but 1000 by config.model.num_scales"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is [0.1, 0.2], but None by config.schedule.alpha_bars"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True, but False by config.schedule.zero_snr"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name is 'ScoreSdeVeScheduler'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name is 'FlowMatchEulerDiscreteScheduler'"),
        ({"beta_end": "0.02"}, "beta_end is '0.02'"),
    ],
)
def test_another_schedule_or_prediction_is_refused_by_name(tmp_path, changes, expected, place):
    """Catches a network that is used with a prediction type or schedule that differs from its training."""
    folder = tmp_path / "pipeline/checkpoint-5/unet"
    folder.mkdir(parents=True)
    write_json(folder / place / SCHEDULER, scheduler_settings(make_config(TINY)) | changes)
    with pytest.raises(UserError) as error:
        check_schedulers(folder, make_config(TINY))
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scheduler", "fields"),
    [
        ({}, {}),  # diffusers' defaults
        ({"_class_name": "PNDMScheduler", "beta_start": 0.0001, "trained_betas": None}, {}),
        ({"prediction_type": "v_prediction"}, {"model.prediction": "v"}),
        (
            {"num_train_timesteps": 300, "beta_start": 0.001, "beta_end": 0.03},
            {"model.num_scales": 300, "model.beta_min": 0.3, "model.beta_max": 9.0},
        ),
        ({"prediction_type": "sample"}, {"model.prediction": "x0"}),
        ({"beta_schedule": "scaled_linear"}, {"schedule.name": "scaled_linear"}),
        ({"beta_schedule": "squaredcos_cap_v2", "beta_end": 0.5}, {"schedule.name": "cosine"}),
        (
            {"num_train_timesteps": 2, "trained_betas": [0.2, 0.5], "beta_schedule": "squaredcos_cap_v2"},
            {"schedule.name": "table", "schedule.alpha_bars": (0.8, 0.4), "model.num_scales": 2},
        ),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            {"schedule.zero_snr": True, "model.prediction": "v"},
        ),
    ],
)
def test_scheduler_that_agrees_is_followed(hub, tmp_path, capsys, scheduler, fields):
    """Catches a refusal of the schedule that the config has, for example because of rounding."""
    shutil.copytree(hub, tmp_path / "hub")
    write_json(tmp_path / "hub" / SCHEDULER, scheduler)
    load_foreign(tmp_path / "hub", make_config(TINY, **fields))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule.name": "cosine"}, "beta_schedule is 'linear', but 'squaredcos_cap_v2' by config.schedule.name"),
        ({"schedule.name": "scaled_linear"}, "beta_schedule is 'linear', but 'scaled_linear'"),
        ({"schedule.name": "table", "schedule.alpha_bars": (0.8, 0.4), "model.num_scales": 2}, "trained_betas is None"),
        ({"schedule.zero_snr": True, "model.prediction": "v"}, "rescale_betas_zero_snr is False, but True"),
        ({"schedule.name": "vp"}, "diffusers has no scheduler for schedule.name=vp"),
        ({"model.prediction": "score"}, "with model.convention=ddpm and model.prediction=score"),
        ({"model.convention": "edm"}, "config.model.convention is edm, the file's is 'ddpm'"),
        ({"model.name": "songunet"}, "config.model.name is songunet, the file's is 'ddpm'"),
    ],
)
def test_config_of_another_process_is_refused(hub, fields, expected):
    """Catches the network of a linear schedule that is used on the schedule, or in the units, of the config."""
    assert expected in refusal(hub, make_config(TINY, **fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule.name": "cosine"}, "beta_schedule is 'squaredcos_cap_v2', but 'linear'"),
        ({"schedule.name": "table", "schedule.alpha_bars": (0.9, 0.5, 0.2)}, "trained_betas is [0.0999"),
    ],
)
def test_export_says_the_schedule(tmp_path, fields, expected):
    """Catches a network of another schedule that diffusers would sample on the linear one."""
    config = make_config(TINY, **{"model.num_scales": 3, **fields})
    export_diffusers(tmp_path / "out", config, make_params(config, 1))
    load_foreign(tmp_path / "out", config)
    assert expected in refusal(tmp_path / "out", make_config(TINY, **{"model.num_scales": 3}))


def test_without_a_scheduler_only_eps_is_taken(hub, tmp_path):
    """Catches an eps network that is imported as a v network because nothing says what it predicts."""
    shutil.copytree(hub, tmp_path / "hub", ignore=shutil.ignore_patterns(SCHEDULER))
    load_foreign(tmp_path / "hub", make_config(TINY))
    text = refusal(tmp_path / "hub", make_config(TINY, **{"model.prediction": "v"}))
    assert f"has no {SCHEDULER} that says what its network predicts" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"clip_sample": True}, "clip_sample is True, but config.sampling.clip_x0 decides here"),
        ({"timestep_spacing": "trailing"}, "timestep_spacing is trailing, but config.sampling.spacing decides here"),
    ],
)
def test_settings_of_the_sampler_are_told(tmp_path, capsys, changes, expected):
    """Catches samples that differ from those of diffusers' pipeline without a warning."""
    config = make_config(TINY)
    write_json(tmp_path / SCHEDULER, scheduler_settings(config) | changes)
    check_schedulers(tmp_path, config)
    assert expected in capsys.readouterr().err
    config.sampling.update(clip_x0="clip_sample" in changes, spacing=changes.get("timestep_spacing", "linear"))
    check_schedulers(tmp_path, config)
    assert not capsys.readouterr().err


def rename(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder / name)


def half(folder: Path, name: str) -> None:
    """Replaces the weights by a variant of half precision."""
    arrays = {key: array.astype(np.float16) for key, array in load_file(folder / WEIGHTS).items()}
    save_file(arrays, folder / name)
    (folder / WEIGHTS).unlink()


def shard(folder: Path, index: str) -> None:
    """Splits the weights into two files, and writes an index with this name unless the name is empty."""
    arrays = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(arrays)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{STEM}-0000{number}-of-00002.safetensors"
        save_file({name: arrays[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        write_json(folder / index, {"metadata": {}, "weight_map": weight_map})


def torch_bin(folder: Path, name: str) -> None:
    write_state_dict(folder / name, load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()


def bfloat16(folder: Path) -> None:
    """Replaces the weights by a file of bfloat16, whose header is written here because safetensors' writer lacks it."""
    header, data = {}, b""
    for name, array in load_file(folder / WEIGHTS).items():
        part = array.astype(jnp.bfloat16).tobytes()
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def pipeline(folder: Path, place: str) -> None:
    """Moves the network to a subfolder."""
    inside = folder.with_name("inside")
    folder.rename(inside)
    (folder / place).parent.mkdir(parents=True)
    inside.rename(folder / place)


def sample_size(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", settings | {"sample_size": [8, 8]})


@pytest.mark.parametrize(
    ("arrange", "source"),
    [
        (lambda folder: pipeline(folder, "unet"), ""),
        (lambda folder: pipeline(folder, "unet"), "unet"),
        (lambda folder: (pipeline(folder, "unet"), (folder / "model_index.json").touch()), "model_index.json"),
        (lambda folder: pipeline(folder, "snapshots/0123abc/unet"), ""),
        (lambda folder: pipeline(folder, "snapshots/0123abc"), ""),
        (sample_size, ""),
        (sample_size, "config.json"),
        (lambda folder: None, WEIGHTS),
        (lambda folder: rename(folder, f"{STEM}.non_ema.safetensors"), ""),
        (lambda folder: rename(folder, "model.safetensors"), ""),
        (lambda folder: torch_bin(folder, f"{STEM}.bin"), f"{STEM}.bin"),
        (lambda folder: torch_bin(folder, f"{STEM}.fp16.bin"), ""),
        (lambda folder: shard(folder, f"{WEIGHTS}.index.json"), ""),
        (lambda folder: shard(folder, f"{STEM}.safetensors.index.fp16.json"), ""),
        (lambda folder: shard(folder, f"{WEIGHTS}.index.json"), f"{WEIGHTS}.index.json"),
        (lambda folder: shard(folder, ""), ""),
        (lambda folder: shard(folder, ""), f"{STEM}-00002-of-00002.safetensors"),
    ],
)
def test_every_layout_of_a_download_is_read(hub, tmp_path, arrange, source):
    """Catches a refusal of a pipeline, a variant, a cache, several files of weights, or a file in place of a folder."""
    folder = tmp_path / "download"
    shutil.copytree(hub, folder)
    arrange(folder)
    found = load_foreign(folder / source, make_config(TINY))
    assert bits(found.params) == bits(make_params(make_config(TINY), 1))


@pytest.mark.parametrize("change", [lambda folder: half(folder, f"{STEM}.fp16.safetensors"), bfloat16])
def test_weights_of_half_precision_become_float32(hub, tmp_path, change):
    """Catches weights of a type that NumPy lacks, and a network that computes in half precision."""
    shutil.copytree(hub, tmp_path / "hub")
    change(tmp_path / "hub")
    found = load_foreign(tmp_path / "hub", make_config(TINY)).params
    expected = make_params(make_config(TINY), 1)
    for leaf, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, exact, rtol=2**-8, atol=1e-6)


def write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 143000000\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>"


@pytest.mark.parametrize(
    ("arrange", "source", "expected"),
    [
        (lambda folder: write(folder, WEIGHTS, POINTER), "", f"{WEIGHTS} is a Git LFS pointer"),
        (lambda folder: write(folder, "x.pth", POINTER), "x.pth", "x.pth is a Git LFS pointer"),
        (lambda folder: write(folder, "x.pth", PAGE), "x.pth", "x.pth is a text that begins with '<!DOCTYPE html>"),
        (lambda folder: write(folder, WEIGHTS, b"Entry not found"), "", "a text that begins with 'Entry not found'"),
        (lambda folder: write(folder, "x.pth", b""), "x.pth", "x.pth is empty; fetch it anew"),
        (lambda folder: write(folder, WEIGHTS, b""), "", f"{WEIGHTS} is empty"),
        (lambda folder: write(folder, "config.json", b""), "", "config.json: cannot be read as JSON"),
        (lambda folder: (folder / WEIGHTS).unlink(), "", f"holds no {WEIGHTS}, only ['config.json', '{SCHEDULER}']"),
        (lambda folder: (folder / "config.json").unlink(), WEIGHTS, "holds no config.json of a UNet2DModel, only"),
        (lambda folder: None, "../nothing", "No such file"),
        (
            lambda folder: (
                [write(folder, f"{STEM}.{name}.safetensors", b"") for name in ("fp16", "bf16")]
                and (folder / WEIGHTS).unlink()
            ),
            "",
            f"holds {STEM}.bf16.safetensors, {STEM}.fp16.safetensors; name one of them as --source",
        ),
        (
            lambda folder: (shard(folder, ""), (folder / f"{STEM}-00002-of-00002.safetensors").unlink()),
            "",
            f"{STEM}-00002-of-00002.safetensors: cannot be read as safetensors (No such file",
        ),
        (
            lambda folder: write(folder, "a.index.json", b'{"weight_map": {"x": "../x.safetensors"}}'),
            "a.index.json",
            "a.index.json: not an index of weights",
        ),
        (lambda folder: write(folder, "a.index.json", b"{}"), "a.index.json", "not an index of weights"),
    ],
)
def test_download_that_failed_is_explained(hub, tmp_path, arrange, source, expected):
    """Catches a message about the format of a file that is only the error page of a failed download."""
    folder = tmp_path / "download"
    shutil.copytree(hub, folder)
    arrange(folder)
    assert expected in refusal(folder / source, make_config(TINY))


def test_zip_of_a_download_is_explained(tmp_path):
    """Catches a message about missing parts for a zip in which Google Drive packs several files."""
    with zipfile.ZipFile(tmp_path / "drive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("models/checkpoint_16.pth", b"x")
    assert "it is a zip of ['models/checkpoint_16.pth']; unpack it" in refusal(
        tmp_path / "drive.zip", make_config(TINY)
    )
