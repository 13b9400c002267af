import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from core import files
from core.errors import UserError


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    """Catches a failed write that destroys the old result or leaves a partial file behind."""
    path = tmp_path / "result.json"
    files.write_json(path, {"score": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"score": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_npz_is_never_unpickled(tmp_path):
    """Catches a file from another person whose code is run when it is loaded."""
    np.savez(tmp_path / "pickled.npz", mean=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="pickled.npz"):
        files.read_npz(tmp_path / "pickled.npz", {"mean"})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut", b"plain text"])
def test_broken_npz_is_one_line(tmp_path, content):
    """Catches a traceback of NumPy or zipfile in place of a UserError that names the file."""
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="broken.npz"):
        files.read_npz(path, set())


def test_npz_of_something_else_names_what_it_lacks(tmp_path):
    """Catches a KeyError for an .npz file that lacks a required array."""
    files.write_npz(tmp_path / "a.npz", {"mu": np.zeros(2)})
    with pytest.raises(UserError, match="lacks mean; it holds mu"):
        files.read_npz(tmp_path / "a.npz", {"mean"})


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_broken_json_is_one_line(tmp_path, text):
    """Catches a traceback for a file that is not JSON, not a JSON object, or not UTF-8."""
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="a.json"):
        files.read_json(tmp_path / "a.json")


HOLDER = """
import sys, time
from pathlib import Path
from core.files import locking
with locking(Path(sys.argv[1]), "busy", wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_frees_its_lock_for_all_that_wait(tmp_path, capsys):
    """Catches a lock that stays after its process ended, that two processes get, or a wait without a message."""
    path = tmp_path / "new/lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], cwd=files.REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="busy"), files.locking(path, "busy", wait=False):
        pass
    inside = threading.Lock()
    entered = []

    def wait():
        with files.locking(path, "waiting", wait=True):
            entered.append(inside.acquire(blocking=False))
            time.sleep(0.1)
            inside.release()

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    threads[0].join(0.5)
    assert entered == []
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    for thread in threads:
        thread.join(60)
    assert entered == [True, True, True]
    assert capsys.readouterr().out == "waiting\n" * 3


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("wait", [False, True])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys, number, wait):
    """Catches a training that cannot start on a file system without locks, and one that starts without a warning."""

    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    entered = []
    with files.locking(tmp_path / ".lock", "busy", wait=wait):
        entered.append(1)
    assert entered and f"{tmp_path}: this file system has no locks" in capsys.readouterr().err


def test_other_errors_of_a_lock_are_raised(tmp_path, monkeypatch):
    """Catches a broken disk that is treated as a file system without locks."""

    def flock(*arguments):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="input/output"), files.locking(tmp_path / ".lock", "busy", wait=False):
        pass
