import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.compilation_cache import cpu_features, remove_unfinished, user_cache
from core.files import REPOSITORY

PROGRAM = """
from core.compilation_cache import keep_programs
keep_programs()
import jax
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
print(jax.jit(lambda x: x * 3)(14), jax.config.jax_compilation_cache_dir, len(hits))
"""


def run(**environment):
    """Runs PROGRAM in a process that does not use this session's cache. Returns its three results."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XDG_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=REPOSITORY, env=kept | environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    """Catches a cache that is never written or read, is in the repository, or fails after a writer was killed."""
    answer, folder, hits = run(XDG_CACHE_HOME=str(tmp_path))
    assert (answer, hits) == ("42", "0")
    assert Path(folder).is_relative_to(tmp_path)
    for program in Path(folder).glob("*-cache"):
        program.write_bytes(program.read_bytes()[:20])
        program.with_name(program.name.removesuffix("cache") + "atime").unlink()
    assert run(XDG_CACHE_HOME=str(tmp_path)) == [answer, folder, "0"]
    assert run(XDG_CACHE_HOME=str(tmp_path)) == [answer, folder, "1"]


@pytest.mark.parametrize("environment", [{"XDG_CACHE_HOME": "/dev/null"}, {"HOME": "/dev/null"}])
def test_runs_without_a_folder_that_can_be_written(environment):
    """Catches an error or a warning if no cache folder can be written."""
    assert run(**environment) == ["42", "None", "0"]


def test_folder_of_the_user_wins(tmp_path):
    """Catches a second cache beside the one that JAX_COMPILATION_CACHE_DIR names."""
    folder = str(tmp_path / "own")
    assert run(JAX_COMPILATION_CACHE_DIR=folder, XDG_CACHE_HOME=str(tmp_path / "cache")) == ["42", folder, "0"]
    assert not (tmp_path / "cache").exists()


def test_user_cache_follows_xdg(monkeypatch, tmp_path):
    """Catches a relative XDG_CACHE_HOME, which must be ignored, putting the cache into the repository."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, expected in [("/x", Path("/x")), ("", tmp_path / ".cache"), ("x", tmp_path / ".cache")]:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert user_cache() == expected


def test_features_tell_cpus_apart(monkeypatch):
    """Catches one folder for all CPUs (programs of one CPU crash on another), and one folder per clock frequency."""
    read = {"text": "model name\t: A\ncpu MHz\t\t: 2000\nflags\t\t: sse avx512f\n\nmodel name\t: B\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: read["text"])
    first = cpu_features()
    assert first == "model name\t: A\nflags\t\t: sse avx512f"
    read["text"] = read["text"].replace("2000", "3000")
    assert cpu_features() == first
    read["text"] = read["text"].replace("avx512f", "avx2")
    assert cpu_features() != first


def test_finished_programs_stay(tmp_path):
    """Catches a repair that removes finished programs, or a program that another process is writing."""
    for name in ("a-cache", "a-atime", "b-cache"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lockfile") == ["a-atime", "a-cache"]
