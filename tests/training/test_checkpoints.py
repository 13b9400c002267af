"""Checkpoints that are truncated, corrupt, incomplete, of another network, or of an earlier version of the program."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import files
from core.errors import UserError
from training import checkpoints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
    """The smallest train state that can be saved."""

    step: jax.Array
    params: dict
    ema: dict


def toy(step):
    return Toy(jnp.asarray(step, jnp.int32), {"w": jnp.full((64, 33), step / 7)}, {"w": jnp.full((64, 33), step / 9)})


def save(config, workdir, *steps):
    with checkpoints.saving(config, workdir) as save:
        for step in steps:
            save(toy(step))


@pytest.fixture
def workdir(config, tmp_path):
    """Makes a workdir with checkpoints of steps 3, 6 and 9."""
    config.training.max_to_keep = 3
    checkpoints.write_config(config, tmp_path)
    save(config, tmp_path, 3, 6, 9)
    return tmp_path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def step_resumed(config, workdir):
    state = checkpoints.resume(config, workdir, toy(0))
    jax.tree.map(np.testing.assert_array_equal, state, toy(int(state.step)))
    return int(state.step)


def test_what_is_saved_comes_back(config, workdir):
    """Catches a step, array or shape that changes between save and restore."""
    assert step_resumed(config, workdir) == 9
    assert not (workdir / "damaged").exists()


@pytest.mark.parametrize("break_it", [truncate, flip_a_bit, lambda path: path.unlink()])
def test_any_broken_file_is_found_and_the_one_before_is_taken(config, workdir, break_it, capsys):
    """Catches a flipped bit that is read as a weight, or a traceback for a truncated file. Breaks each file in turn."""
    newest = workdir / "checkpoints/9"
    names = [name for name, data in contents(newest).items() if data and len(name.parts) > 1]
    assert len(names) > 15
    for name in names:
        good = (newest / name).read_bytes()
        break_it(newest / name)
        assert checkpoints.newest_whole(workdir) == 6, name
        (newest / name).write_bytes(good)
    assert "the checkpoint of step 9" in capsys.readouterr().err
    assert checkpoints.newest_whole(workdir) == 9


def test_nothing_damaged_is_deleted_and_its_step_can_be_saved_again(config, workdir, capsys):
    """Catches a fallback that deletes the damaged files, or after which orbax refuses to save the same steps again."""
    truncate(next((workdir / "checkpoints/9/ema/d").iterdir()))
    shutil.rmtree(workdir / "checkpoints/6/train")
    broken = contents(workdir / "checkpoints/9")
    assert step_resumed(config, workdir) == 3
    assert "moved the damaged checkpoint of step 9" in capsys.readouterr().err
    assert contents(workdir / "damaged/9") == broken and (workdir / "damaged/6/ema").is_dir()
    save(config, workdir, 6, 9)
    assert checkpoints.saved_steps(workdir) == [3, 6, 9] and step_resumed(config, workdir) == 9
    truncate(workdir / "checkpoints/9/facts/metadata")
    assert step_resumed(config, workdir) == 6
    assert contents(workdir / "damaged/9") == broken and (workdir / "damaged/9+/facts").is_dir()


def test_a_half_written_checkpoint_is_no_checkpoint(config, workdir):
    """Catches a temporary or incomplete folder of a killed save that counts as a checkpoint."""
    (workdir / "checkpoints/9").rename(workdir / "checkpoints/12.orbax-checkpoint-tmp")
    assert step_resumed(config, workdir) == 6
    (workdir / "checkpoints/9").mkdir()
    assert step_resumed(config, workdir) == 6
    save(config, workdir, 9, 12)
    assert step_resumed(config, workdir) == 12


def test_no_whole_checkpoint_is_an_error_that_changes_nothing(config, workdir):
    """Catches a run that silently starts from step 0 and overwrites damaged checkpoints."""
    for step in (3, 6, 9):
        (workdir / f"checkpoints/{step}/checksums.json").write_text("{")
    before = contents(workdir)
    with pytest.raises(UserError, match="no checkpoint in .* is whole"):
        checkpoints.resume(config, workdir, toy(0))
    assert contents(workdir) == before


def test_another_network_is_refused_by_the_checkpoint_itself(config, workdir):
    """Catches weights of another network that are loaded, or reported as damaged, if config.json is lost or edited."""
    (workdir / "config.json").unlink()
    before = contents(workdir)
    config.model.nf = 64
    config.training.snapshot_freq += 1
    with pytest.raises(UserError, match="model.nf is 64, there 32$"):
        checkpoints.resume(config, workdir, toy(0))
    assert contents(workdir) == before


def test_training_goes_on_with_its_own_optimiser(config, workdir, capsys):
    """Catches a state loaded into another optimiser, a traceback, and a new data.path without a warning."""
    config.data.path = "/else"
    (workdir / "metrics.jsonl").touch()  # training writes this file
    checkpoints.check_workdir(config, workdir)
    assert "continues with data.path='/else' (before: '')" in capsys.readouterr().err
    config.optim.optimizer = "Muon"
    with pytest.raises(UserError, match="trained by optim.optimizer=Adam, not Muon"):
        checkpoints.check_workdir(config, workdir)
    shutil.rmtree(workdir / "checkpoints")
    checkpoints.check_workdir(config, workdir)


def test_facts_say_how_it_came_to_be(config, workdir):
    """Catches metadata of another step or config, or without the versions of the libraries."""
    facts = json.loads((workdir / "checkpoints/6/facts/metadata").read_text())
    assert facts["step"] == facts["data"]["next_batch"] == facts["rng"]["next_fold"] == 6
    assert facts["config"] == json.loads(config.to_json())
    assert facts["versions"]["jax"] == jax.__version__


def test_checkpoints_without_checksums_are_still_read(config, workdir):
    """Catches a program that cannot read checkpoints of an earlier version."""
    for path in workdir.glob("checkpoints/*/**/checksums.json"):
        path.unlink()
    for path in workdir.glob("checkpoints/*/facts"):
        shutil.rmtree(path)
    assert step_resumed(config, workdir) == 9


def test_one_writer_and_any_number_of_readers(config, workdir):
    """Catches two runs that train in one workdir, a lock that stops readers, and one that is not released."""
    with checkpoints.only_writer(workdir):
        with pytest.raises(UserError, match="another process trains"), checkpoints.only_writer(workdir):
            pass
        assert checkpoints.newest_whole(workdir, "ema") == 9
    with checkpoints.only_writer(workdir):
        pass


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(config, workdir):
    """Catches an evaluation of another step than the requested one."""
    config.eval.checkpoint = 9
    flip_a_bit(workdir / "checkpoints/9/ema/_METADATA")
    with pytest.raises(UserError, match="9 is damaged .*checksum mismatch in _METADATA.*checkpoint=-1"):
        checkpoints.load_ema(config, workdir)


def test_checksums_that_are_no_names_are_damage(workdir):
    """Catches a traceback for a checksum file that names no files of the checkpoint."""
    files.write_json(workdir / "checkpoints/9/checksums.json", {"..": 3, "no\0name": 1})
    assert checkpoints.newest_whole(workdir) == 6
