import numpy as np
import pytest

from core import files
from core.errors import UserError


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    """A result lost, or a half-written one left, because writing failed midway."""
    path = tmp_path / "result.json"
    files.write_json(path, {"score": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"score": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_npz_is_never_unpickled(tmp_path):
    """Code in a foreign statistics file must not run."""
    np.savez(tmp_path / "pickled.npz", mean=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="pickled.npz"):
        files.read_npz(tmp_path / "pickled.npz", {"mean"})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut", b"plain text"])
def test_broken_npz_is_one_line(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="broken.npz"):
        files.read_npz(path, set())


def test_npz_of_something_else_names_what_it_lacks(tmp_path):
    files.write_npz(tmp_path / "a.npz", {"mu": np.zeros(2)})
    with pytest.raises(UserError, match="lacks mean; it holds mu"):
        files.read_npz(tmp_path / "a.npz", {"mean"})


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_broken_json_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="a.json"):
        files.read_json(tmp_path / "a.json")
