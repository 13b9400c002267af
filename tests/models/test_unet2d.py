"""diffusers' UNet2DModel in many configurations: outputs equal to diffusers' own, and refusal of all others."""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from configs import imported
from configs.default import get_default_config
from core.errors import UserError
from core.files import write_json
from models import abstract_params, make_schedule, unet2d
from models.diffusers_folder import WEIGHTS
from models.diffusers_schedule import SCHEDULER, schedule_fields, scheduler_settings
from models.foreign import export_diffusers
from models.torch_names import unet2d_tensors
from models.unet2d_file import load_unet2d
from tests.torch_pickles import rule

GOLDEN = Path(__file__).parents[1] / "data/unet2d.npz"
NAMES = [
    *("attention", "class", "scale_shift", "mid_norm", "no_mid_attention", "no_mid", "resnet_resampling", "skip"),
    *("class_timestep", "class_identity", "learned_time"),
]
# The inputs of the golden outputs.
TIMES = {"skip": [0.5, 7.0]}
LABELS = {"class": np.array([9, 0]), "class_timestep": np.array([5, 600]), "class_identity": rule(2, (2, 32))}


def write_network(folder: Path, unet: dict) -> None:
    """Writes a folder of diffusers with generated weights."""
    model = unet2d.abstract(unet2d.read_settings(folder, unet))
    shapes = {path: variable.shape for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    weights = {}
    for tensor in unet2d_tensors(model):
        shape = tensor.layout.save(np.broadcast_to(0, shapes[tensor.path])).shape
        weights[tensor.name] = rule(zlib.crc32(tensor.name.encode()), shape)
    write_json(folder / "config.json", unet)
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_diffusers(tmp_path, name):
    """Catches a wrong name, layout, order, group, head, padding, filter or scale, in any block and configuration."""
    with np.load(GOLDEN) as file:
        unet = json.loads(str(file[f"{name}_config"]))
        expected = file[f"{name}_out"]
    write_network(tmp_path, unet)
    config = imported.get_config(str(tmp_path))
    network = nnx.merge(abstract_params(config)[0], load_unet2d(tmp_path, config))
    x = 2 * rule(1, (2, unet.get("in_channels", 3), 8, 8))
    t = jnp.array(TIMES.get(name, [3, 41]), jnp.float32)
    labels = {"labels": jnp.asarray(LABELS[name])} if name in LABELS else {}
    found = jax.jit(lambda x: network(x, t, **labels))(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


SMALL = {
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "sample_size": 8,
}
LINEAR = {"schedule.name": "linear", "schedule.single_precision": True, "model.beta_max": 20.0}
SIGMAS = {"sigma_min": 0.02, "sigma_max": 60.0}


@pytest.mark.parametrize(
    ("scheduler", "fields"),
    [
        ({}, LINEAR | {"model.prediction": "eps", "model.convention": "ddpm"}),
        ({"prediction_type": "sample", "clip_sample": True}, {"model.prediction": "x0", "sampling.clip_x0": True}),
        (
            {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_end": 0.012, "beta_start": 8.5e-4},
            {"schedule.name": "scaled_linear", "model.beta_min": 0.85, "model.beta_max": 12.0},
        ),
        (
            {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            {"schedule.name": "cosine", "model.prediction": "v", "schedule.zero_snr": True},
        ),
        (
            {"trained_betas": [0.1, 0.5], "num_train_timesteps": 2, "timestep_spacing": "trailing"},
            {"schedule.name": "table", "schedule.alpha_bars": (0.9, 0.45), "sampling.spacing": "trailing"},
        ),
        (
            {"_class_name": "ScoreSdeVeScheduler", **SIGMAS},
            {"model.convention": "sigma", "model.prediction": "score", "schedule.sigma_max": 60.0},
        ),
        (
            {"_class_name": "EDMEulerScheduler", **SIGMAS, "sigma_data": 1.0},
            {"model.convention": "edm", "model.prediction": "edm", "model.sigma_data": 1.0, "schedule.name": "edm"},
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"model.convention": "flow", "schedule.name": "flow"}),
    ],
)
def test_scheduler_becomes_the_config_and_back(tmp_path, scheduler, fields):
    """Catches a schedule or prediction that is taken for another, on import or on export."""
    write_json(tmp_path / SCHEDULER, scheduler)
    config = get_default_config()
    config.update_from_flattened_dict(schedule_fields(tmp_path))
    for name, value in fields.items():
        section, field = name.split(".")
        assert config[section][field] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name
    write_json(tmp_path / SCHEDULER, scheduler_settings(config))
    again = get_default_config()
    again.update_from_flattened_dict(schedule_fields(tmp_path))
    np.testing.assert_allclose(make_schedule(again).alpha_bars, make_schedule(config).alpha_bars, rtol=1e-6)
    assert (again.model.prediction, again.model.convention) == (config.model.prediction, config.model.convention)


def test_export_and_import_change_nothing(tmp_path):
    """Catches a weight that is transposed on the way out, and settings that are lost."""
    write_network(tmp_path / "unet", SMALL)
    config = imported.get_config(str(tmp_path / "unet"))
    assert config.data.image_size == 8
    params = load_unet2d(tmp_path / "unet", config)
    export_diffusers(tmp_path / "again", config, params)
    again = imported.get_config(str(tmp_path / "again"))
    assert again.to_json() == config.to_json()
    jax.tree.map(np.testing.assert_array_equal, load_unet2d(tmp_path / "again", again), params)


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        ({"_class_name": "ScoreSdeVpScheduler"}, "_class_name is 'ScoreSdeVpScheduler'; supported are DDPMScheduler"),
        ({"beta_schedule": "laplace"}, "'laplace' is not supported"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
        ({"beta_end": "0.02"}, "beta_end is '0.02', not a number"),
        ({"trained_betas": [0.1]}, "trained_betas are not 1000 numbers"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "only 'epsilon' is supported"),
    ],
)
def test_other_schedulers_are_refused(tmp_path, scheduler, says):
    """Catches a traceback, and a setting that is ignored."""
    write_json(tmp_path / SCHEDULER, scheduler)
    with pytest.raises(UserError, match=says) as error:
        schedule_fields(tmp_path)
    assert "\n" not in str(error.value)


def test_schedules_that_diffusers_lacks_are_not_exported():
    """Catches a network that diffusers would use on another schedule than that of its training."""
    config = get_default_config()
    config.schedule.name = "vp"
    with pytest.raises(UserError, match="diffusers has no scheduler for schedule.name=vp"):
        scheduler_settings(config)


def test_dropout_is_applied_with_keys_only():
    """Catches dropout in evaluation, and training without dropout."""
    settings = unet2d.Settings(
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        dropout=0.5,
    )
    network = unet2d.UNet2D(settings, rngs=nnx.Rngs(0))
    params = nnx.state(network, nnx.Param)
    nnx.update(network, jax.tree.map(jnp.ones_like, params))
    x = jnp.array(rule(1, (2, 8, 8, 3)))
    plain = [network(x, jnp.ones(2)) for _ in range(2)]
    dropped = network(x, jnp.ones(2), nnx.Rngs(dropout=1))
    np.testing.assert_array_equal(*plain)
    assert not np.allclose(plain[0], dropped)


def test_unknown_settings_in_a_config_are_refused():
    """Catches a misspelt setting that is ignored, and text that is not JSON."""
    config = get_default_config()
    for text, says in (('{"layers": 1}', "no setting 'layers'"), ("{", "not JSON")):
        config.model.unet2d = text
        with pytest.raises(UserError, match=says):
            unet2d.settings_of(config)


def test_network_with_classes_asks_for_labels():
    """Catches a prediction without labels of a network that was only trained with labels."""
    settings = unet2d.read_settings(Path("x"), {"num_class_embeds": 3, "block_out_channels": [32] * 4})
    network = unet2d.abstract(settings)
    with pytest.raises(UserError, match="labels must be given"):
        jax.eval_shape(network, jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is 'UNet2DConditionModel'; supported are 'UNet2DModel'"),
        ({"act_fn": "tanh"}, "act_fn is 'tanh'; supported are 'silu', 'swish', 'relu', 'gelu', 'mish'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        ({"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        ({"down_block_types": ["KDownBlock2D"] * 2}, "down_block_types has KDownBlock2D; supported are DownBlock2D"),
        ({"up_block_types": ["UpBlock2D"]}, "not the settings of a supported UNet2DModel"),
        (
            {"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]},
            "blocks with Skip in their name must be at the finest",
        ),
        ({"block_out_channels": [10, 20]}, "not the settings of a supported UNet2DModel"),
        ({"block_out_channels": [0, 0]}, "not the settings of a supported UNet2DModel"),
        ({"block_out_channels": None}, "not the settings of a supported UNet2DModel"),
        ({"layers_per_block": 10**9}, "layers_per_block is 1000000000, not 1 to 100"),
        ({"layers_per_block": "2"}, "not the settings of a supported UNet2DModel"),
        ({"norm_num_groups": None}, "not the settings of a supported UNet2DModel"),
        ({"time_embedding_type": "learned"}, "not the settings of a supported UNet2DModel"),
    ],
)
def test_other_settings_are_refused(changes, expected):
    """Catches a traceback, and a setting that is ignored."""
    unet = {"block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1}
    unet |= {"down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}
    with pytest.raises(UserError) as error:
        unet2d.read_settings(Path("config.json"), unet | changes)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_old_names_of_blocks_are_read():
    """Catches a refusal of networks from before diffusers 0.3."""
    unet = {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"], "norm_num_groups": 4}
    unet |= {"up_block_types": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"], "block_out_channels": [8, 16]}
    assert unet2d.read_settings(Path("x"), unet).down_block_types == ("DownBlock2D", "AttnDownBlock2D")
