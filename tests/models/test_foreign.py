"""Weights of the paper's PyTorch code and of diffusers: equal predictions, and refusal of all other files."""

import json
import random
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from core.files import write_json
from models import abstract_params, apply_model, diffusers_folder, foreign
from models.diffusers_folder import WEIGHTS, read_weights
from models.diffusers_schedule import SCHEDULER, check_schedulers, scheduler_settings
from models.foreign import export_diffusers, load_foreign
from models.torch_names import PAPER, tensors
from tests.torch_pickles import body, pickled, rule, tensor, write_paper_checkpoint, write_state_dict, write_zip

TINY = {"image_size": 8, "num_channels": 1, "nf": 32, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [8]}
UNET = {"image_size": 32, "num_channels": 3, "nf": 32, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2}


def make_config(sizes: dict, **changes) -> ConfigDict:
    """Returns a config with the given fields of data and model. `changes` are named data.x or model.x."""
    data = {"image_size": sizes["image_size"], "num_channels": sizes["num_channels"], "centered": True}
    model = {"name": "ddpm", "dropout": 0.1, "resamp_with_conv": True, "conditional": True, "nonlinearity": "swish"}
    model |= {"normalization": "GroupNorm", "num_groups": 32, "attn_resolutions": (16,), "dtype": "float32"}
    model |= {"patch_size": 1, "prediction": "eps", "beta_min": 0.1, "beta_max": 20.0, "num_scales": 1000}
    model |= {"convention": "ddpm"}
    model |= {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
    model = {name: value for name, value in model.items() if name not in data}
    schedule = {"name": "linear", "alpha_bars": (), "zero_snr": False}
    sampling = {"clip_x0": False, "spacing": "linear"}
    config = ConfigDict({"data": data, "schedule": schedule, "model": model, "sampling": sampling})
    config.update_from_flattened_dict(changes)
    return config


def make_params(config: ConfigDict, seed: int) -> nnx.State:
    """Returns parameters without zeros, as after training."""
    leaves, tree = jax.tree.flatten(abstract_params(config)[1])
    return tree.unflatten([jnp.array(rule(seed + i, leaf.shape)) for i, leaf in enumerate(leaves)])


run = jax.jit(apply_model, static_argnames="graphdef")  # compiled once per network


def eps(config: ConfigDict, params: nnx.State, x_nchw: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Returns the noise prediction of our network, with axes in torch's order."""
    graphdef, fresh = abstract_params(config)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), fresh)
    x = jnp.array(x_nchw.transpose(0, 2, 3, 1))
    return np.asarray(run(graphdef, params, x, jnp.array(t, jnp.float32))).transpose(0, 3, 1, 2)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Checks equality to 1e-5 of the largest value; the measured difference is 2e-6."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def bits(params: nnx.State) -> list[bytes]:
    """Returns the bytes of every parameter, for exact comparison."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


def refusal(path: Path, config: ConfigDict) -> str:
    """Returns the error message for a file that must be refused. Checks that it is one line."""
    with pytest.raises(UserError) as error:
        load_foreign(path, config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "step"), [("grey8", 1234), ("rgb32", 1234), ("rgb8_plain", 70000)])
def test_networks_of_the_paper_give_the_same_eps(tmp_path, name, step):
    """Catches a wrong name, order or layout of any weight, EMA and raw weights confused, and a lost step.

    The networks are for grey or colour images, with attention at one level or none, and with or without the prefix
    `module.` in their names.
    """
    sizes, golden = write_paper_checkpoint(tmp_path / "x.pth", name)
    config = make_config(sizes)
    checkpoint = load_foreign(tmp_path / "x.pth", config)
    assert checkpoint.step == step
    assert_close(eps(config, checkpoint.params, golden["x"], golden["t"]), golden["model"])
    assert_close(eps(config, checkpoint.ema, golden["x"], golden["t"]), golden["ema"])


def write_unet(folder: Path, rename=str) -> dict:
    """Writes a folder as diffusers does, with generated weights; returns inputs and outputs of its network."""
    with np.load(Path(__file__).parents[1] / "data/diffusers_unet.npz") as file:
        golden = {key: file[key] for key in file}
    folder.mkdir()
    (folder / "config.json").write_text(str(golden["config"]))
    shapes = json.loads(str(golden["shapes"]))
    weights = {rename(name): rule(zlib.crc32(name.encode()), shape) for name, shape in shapes.items()}
    save_file(weights, folder / WEIGHTS)
    return golden


def test_diffusers_network_gives_the_same_eps(tmp_path):
    """Catches a wrong name or layout, for example in the time embedding, the 1x1 convolutions or the attention."""
    golden = write_unet(tmp_path / "unet")
    config = make_config(UNET)
    checkpoint = load_foreign(tmp_path / "unet", config)
    assert checkpoint.step == 0 and bits(checkpoint.params) == bits(checkpoint.ema)
    assert_close(eps(config, checkpoint.params, golden["x"], golden["t"]), golden["eps"])


def test_reads_old_names_and_bin_files(tmp_path):
    """Catches an error for folders that diffusers wrote before 0.17, such as google/ddpm-cifar10-32."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    config = make_config(TINY)
    params = make_params(config, 1)
    export_diffusers(tmp_path / "new", config, params)
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text((tmp_path / "new/config.json").read_text())
    weights = load_file(tmp_path / "new" / WEIGHTS)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): array for key, array in weights.items()}
    write_state_dict((folder / WEIGHTS).with_suffix(".bin"), weights)
    assert bits(load_foreign(folder, config).params) == bits(params)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("model.nf", 64, "config.model.nf is 64, the file's is 32"),
        ("model.ch_mult", (1, 2, 2), "config.model.ch_mult is (1, 2, 2), the file's is (1, 2)"),
        ("model.num_res_blocks", 2, "config.model.num_res_blocks is 2, the file's is 1"),
        ("model.attn_resolutions", (8,), "config.model.attn_resolutions is (8,), the file's is (4,)"),
        ("model.conditional", False, "config.model.conditional is False, the file's is True"),
        ("model.resamp_with_conv", False, "config.model.resamp_with_conv is False, the file's is True"),
        ("data.num_channels", 3, "config.data.num_channels is 3, the file's is 1"),
    ],
)
def test_field_that_differs_from_a_checkpoint_is_named(tmp_path, field, value, expected):
    """Catches a field derived wrongly from the shapes, and a message about a shape in place of the field."""
    sizes, _ = write_paper_checkpoint(tmp_path / "x.pth", "grey8")
    text = refusal(tmp_path / "x.pth", make_config(sizes, **{field: value}))
    assert expected in text and text.count("config.") == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"block_out_channels": [64]}, "config.model.nf is 32, the file's is 64"),
        ({"block_out_channels": [32, 48]}, "config.model.ch_mult is (1,), the file's is (1, 1.5)"),
        ({"norm_num_groups": 8}, "config.model.num_groups is 32, the file's is 8"),
        ({"layers_per_block": 2}, "config.model.num_res_blocks is 1, the file's is 2"),
        ({"in_channels": 3, "out_channels": 3}, "config.data.num_channels is 1, the file's is 3"),
        ({"sample_size": 16}, "config.data.image_size is 8, the file's is 16"),
        ({"sample_size": [16, 16]}, "config.data.image_size is 8, the file's is 16"),
        ({"sample_size": [8, 16]}, "config.data.image_size is 8, the file's is [8, 16]"),
        ({"center_input_sample": True}, "config.data.centered is True, the file's is False"),
        (
            {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
            "config.model.attn_resolutions is (8,), the file's is ()",
        ),
        ({"out_channels": 2}, "out_channels is 2; only 1 is supported"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'; only 'silu' is supported"),
        ({"downsample_padding": 1}, "downsample_padding is 1; only 0 is supported"),
        ({"attention_head_dim": 8}, "attention_head_dim is 8; only None is supported"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types is ['UpBlock2D']"),
        ({"down_block_types": ["ResnetDownsampleBlock2D"]}, "down_block_types is ['ResnetDownsampleBlock2D']"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is 'UNet2DConditionModel'"),
        ({"block_out_channels": []}, "not the settings of a UNet2DModel"),
        ({"block_out_channels": [0]}, "not the settings of a UNet2DModel"),
        ({"block_out_channels": "32"}, "not the settings of a UNet2DModel"),
        ({"down_block_types": None}, "not the settings of a UNet2DModel"),
    ],
)
def test_settings_that_differ_or_are_unsupported_are_named(tmp_path, changes, expected):
    """Catches an unsupported setting that is ignored and gives wrong predictions, and a message with a wrong name."""
    config = make_config(TINY)
    settings = foreign._unet_config(config) | changes
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert expected in refusal(tmp_path, config)


def test_missing_setting_has_the_default_of_diffusers(tmp_path):
    """Catches a missing setting that is ignored, although diffusers' default (here of freq_shift) is not supported."""
    config = make_config(TINY)
    for key, expected in (("freq_shift", "freq_shift is 0"), ("layers_per_block", "KeyError('layers_per_block')")):
        settings = foreign._unet_config(config)
        del settings[key]
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert expected in refusal(tmp_path, config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (lambda weights: weights | {"conv_in.weight": weights["conv_in.weight"][:, :, :2]}, "(32, 1, 3, 3), found"),
        (
            lambda weights: weights | {"conv_in.bias": np.zeros(32, np.int64)},
            "floats of shape (32,), found int64 (32,)",
        ),
        (
            lambda weights: {name: a for name, a in weights.items() if name != "conv_out.bias"},
            "conv_out.bias should be",
        ),
        (lambda weights: weights | {"extra": np.zeros(1)}, "holds ['extra'], which the network of the config lacks"),
    ],
)
def test_every_weight_is_used_and_has_the_expected_shape(tmp_path, changes, expected):
    """Catches weights that are missing, left over, broadcast to the shape, or converted from integers."""
    config = make_config(TINY)
    export_diffusers(tmp_path / "unet", config, make_params(config, 0))
    save_file(changes(load_file(tmp_path / "unet" / WEIGHTS)), tmp_path / "unet" / WEIGHTS)
    assert expected in refusal(tmp_path / "unet", config)


def test_other_pth_files_are_refused(tmp_path):
    """Catches a traceback for a .pth that is not a checkpoint of the paper's code."""
    config = make_config(TINY)
    path = tmp_path / "x.pth"
    one = tensor("0", "float32", 1, (1,), (1,))
    write_state_dict(path, {"conv.weight": np.zeros((1, 1))})
    assert "which is a dict of model, step and ema" in refusal(path, config)
    head = b"}(" + body("step") + body(3) + body("ema") + b"}" + body("shadow_params") + b"]" + one + b"as"
    for model in (body({}), body({"all_modules.9999.weight": 1}), b"}" + body("all_modules.0.weight") + one + b"s"):
        write_zip(path, pickled(head + body("model") + model + b"u"), {"0": bytes(4)})
        assert "is not the paper's DDPM network" in refusal(path, config)


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        (TINY | {"ch_mult": [1, 2]}, {"data.centered": False}),
        (TINY | {"num_channels": 3, "attn_resolutions": []}, {}),
        (TINY | {"ch_mult": [1, 2], "num_res_blocks": 2}, {"model.num_groups": 8}),
        (TINY, {"model.prediction": "v", "model.beta_max": 12.0, "model.num_scales": 300}),
    ],
)
def test_import_after_export_gives_the_same_weights(tmp_path, sizes, changes):
    """Catches a transpose that is not reversed, an array written in memory order, and a missing block."""
    config = make_config(sizes, **changes)
    params = make_params(config, 3)
    export_diffusers(tmp_path / "new/unet", config, params)
    found = load_foreign(tmp_path / "new/unet", config).params
    assert jax.tree.structure(found) == jax.tree.structure(params) and bits(found) == bits(params)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["unet"]


@pytest.mark.parametrize("number", [np.nan, -np.inf, 1e300])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("diffusers", "safetensors: conv_in.weight holds NaN"),
        ("model", "x.pth: all_modules.0.weight holds NaN"),
        ("ema", "x.pth, EMA: all_modules.0.weight holds NaN"),
    ],
)
def test_weights_that_are_not_finite_are_named(tmp_path, name, expected, number):
    """Catches an import of NaN or infinity, and of float64 weights that are too large for float32."""
    config = make_config(TINY | {"attn_resolutions": []}, **{"model.conditional": name == "diffusers"})
    if name == "diffusers":
        export_diffusers(tmp_path / "unet", config, make_params(config, 0))
        path = tmp_path / "unet"
        weights = dict(load_file(path / WEIGHTS))
        weights["conv_in.weight"] = np.full((32, 1, 3, 3), number)
        save_file(weights, path / WEIGHTS)
    else:
        path = tmp_path / "x.pth"
        arrays = paper_arrays(config)
        broken = arrays | {"all_modules.0.weight": np.full((32, 1, 3, 3), number)}
        write_paper(path, model=broken if name == "model" else arrays, ema=broken if name == "ema" else arrays)
    assert expected in refusal(path, config)


def paper_arrays(config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns weights of the config's network by their names in the paper's code."""
    model = foreign._network(config)
    shapes = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    return {
        tensor.name: np.ascontiguousarray(tensor.layout.save(rule(index, shapes[tensor.path].shape)))
        for index, tensor in enumerate(tensors(model, PAPER))
    }


def write_paper(path: Path, *, model: dict, ema: dict, step: bytes = body(3)) -> None:
    """Writes a checkpoint of the paper's code. `step` are the pickle operations that push the step."""
    storages = {}

    def push(array: np.ndarray) -> bytes:
        key = str(len(storages))
        storages[key] = array.tobytes()
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return tensor(key, array.dtype.name, array.size, array.shape, strides)

    named = b"}(" + b"".join(body(name) + push(array) for name, array in model.items()) + b"u"
    shadow = b"](" + b"".join(map(push, ema.values())) + b"e"
    ema_state = b"}" + body("shadow_params") + shadow + b"s"
    if step == b"tensor":
        step = push(np.array(7))
    items = body("step") + step + body("model") + named + body("ema") + ema_state
    write_zip(path, pickled(b"}(" + items + b"u"), storages)


def test_checkpoints_of_score_sde_have_a_table_of_sigmas_and_a_step_in_a_tensor(tmp_path):
    """Catches a refusal of the PyTorch port's checkpoints, whose networks have a buffer that DDPM does not use."""
    config = make_config(TINY | {"attn_resolutions": []})
    arrays = paper_arrays(config)
    model = {"module.sigmas": np.linspace(0.01, 50, 1000)} | {f"module.{name}": a for name, a in arrays.items()}
    write_paper(tmp_path / "port.pth", model=model, ema=arrays, step=b"tensor")
    found = load_foreign(tmp_path / "port.pth", config)
    write_paper(tmp_path / "paper.pth", model=arrays, ema=arrays)
    expected = load_foreign(tmp_path / "paper.pth", config)
    assert (found.step, expected.step) == (7, 3)
    assert bits(found.params) == bits(found.ema) == bits(expected.params)
    write_paper(tmp_path / "x.pth", model=arrays, ema=arrays, step=body(-1))
    assert "its step is not one whole number from 0 to 2^31" in refusal(tmp_path / "x.pth", config)


def test_attention_once_per_level_is_refused(tmp_path):
    """Catches a checkpoint of score_sde, with attention once per level of `up`, that is loaded into this network."""
    names = {"D": ["weight"], "C": ["weight"], "N": ["weight"], "R": ["Conv_1.weight"], "A": ["NIN_3.W"], "S": []}
    shapes = {"D": (2, 2), "C": (32, 1, 3, 3), "N": (32,), "R": (32, 32, 3, 3), "A": (32, 32)}
    weights = {
        f"all_modules.{index}.{name}": np.broadcast_to(np.float32(0), shapes[letter])
        for index, letter in enumerate("DDCRARARRRANC")
        for name in names[letter]
    }
    with pytest.raises(UserError, match="a level has attention after some blocks only"):
        foreign._paper_fields(tmp_path, weights, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nonlinearity", "relu"),
        ("conditional", False),
        ("resamp_with_conv", False),
        ("patch_size", 2),
    ],
)
def test_export_refuses_what_diffusers_cannot_express(tmp_path, field, value):
    """Catches a folder that diffusers loads as a network with other predictions."""
    config = make_config(TINY, **{f"model.{field}": value})
    with pytest.raises(UserError, match=f"config.model.{field} is {value}, that of every UNet2DModel is"):
        export_diffusers(tmp_path / "unet", config, make_params(config, 0))
    assert not (tmp_path / "unet").exists()


def test_export_is_atomic(tmp_path, monkeypatch):
    """Catches an incomplete folder after a full disk, and an earlier export that is overwritten."""
    config = make_config(TINY)
    params = make_params(config, 0)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(diffusers_folder, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        export_diffusers(tmp_path / "unet", config, params)
    assert not list(tmp_path.iterdir())
    export_diffusers(tmp_path / "unet", config, params)
    with pytest.raises(UserError, match="exists already"):
        export_diffusers(tmp_path / "unet", config, params)


def test_damaged_folders_give_an_error_of_one_line(tmp_path):
    """Catches a traceback of safetensors, numpy or this project."""
    config = make_config(TINY)
    rng = random.Random(0)
    assert "config.json" in refusal(tmp_path, config)
    write_json(tmp_path / "config.json", foreign._unet_config(config))
    write_json(tmp_path / SCHEDULER, scheduler_settings(config))
    assert WEIGHTS in refusal(tmp_path, config)
    save_file({"conv_in.bias": np.arange(32.0)}, tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    values = [None, True, -1, 0, 1.5, "x", [], {}, [None], ["DownBlock2D"] * 3, 10**400, float("inf"), [32, "x"]]
    for _ in range(500):
        settings = foreign._unet_config(config)
        settings[rng.choice(list(settings))] = rng.choice(values)
        write_json(tmp_path / "config.json", settings)
        scheduler = scheduler_settings(config)
        scheduler[rng.choice(list(scheduler))] = rng.choice(values)
        write_json(tmp_path / SCHEDULER, scheduler)
        changed = bytearray(whole)
        changed[rng.randrange(200)] = rng.randrange(256)
        (tmp_path / WEIGHTS).write_bytes(changed[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for read in (
            lambda: foreign._check_fields(
                tmp_path, config, foreign._unet_fields(tmp_path / "config.json", config.data.image_size)
            ),
            lambda: check_schedulers(tmp_path, config),
            lambda: read_weights(tmp_path / WEIGHTS),
        ):
            try:
                read()
            except UserError as error:
                assert "\n" not in str(error)
