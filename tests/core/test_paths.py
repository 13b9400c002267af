"""Paths that the user gives."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.default import get_default_config
from configs.validation import PATHS, validate
from core.errors import UserError
from core.paths import expanded, path_field

URLS = ("gs://bucket/run", "s3://b", "hdfs://host:1/x", "file:///tmp/x", "HTTPS://host/x", "s3a://b", "abfss://c@a/x")


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_refused_by_name(url):
    """Catches a bucket that becomes a local folder called "gs:"."""
    with pytest.raises(UserError, match=f"^--workdir={url} is a URL: give a path on this machine"):
        expanded(url, "--workdir")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("~", "/home/ada"), ("~/x", "/home/ada/x"), ("~root/x", f"{os.path.expanduser('~root')}/x"), ("a/~/b", "a/~/b")],
)
def test_tilde_is_a_home_folder(monkeypatch, path, expected):
    """Catches ~ that is not expanded, that is expanded only before a slash, or in the middle of a path."""
    monkeypatch.setenv("HOME", "/home/ada")
    assert expanded(path, "--workdir") == Path(expected)


@pytest.mark.parametrize(("home", "path"), [("/home/ada", "~no-such-user/x"), ("", "~/x")])
def test_a_home_that_is_not_known_is_refused_by_name(monkeypatch, home, path):
    """Catches a RuntimeError of pathlib, and a path in the root folder for an empty HOME."""
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UserError, match=f"^--dest={path}: the home folder {path.split('/')[0]} is not known"):
        expanded(path, "--dest")


def test_without_home_and_without_an_entry_for_the_user_it_is_refused(monkeypatch):
    """Catches a folder called "~" in a container whose user has no entry in the system's list of users."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(UserError, match="the home folder ~ is not known"):
        expanded("~/x", "--workdir")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_other_paths_are_left_as_they_are(path):
    """Catches names with a colon, a ~ inside or spaces that are changed or refused."""
    if not path.startswith("~") and "://" not in path:
        assert expanded(path, "--workdir") == Path(path)


@pytest.mark.parametrize("field", PATHS)
def test_every_path_field_follows_the_rules(monkeypatch, field):
    """Catches a field whose ~ is not expanded, or whose URL is refused only after other work."""
    monkeypatch.setenv("HOME", "/home/ada")
    config = get_default_config()
    section, _, name = field.rpartition(".")
    owner = config[section] if section else config
    for wrong, says in (("gs://bucket", "is a URL"), ("~no-such-user/x", "is not known")):
        owner[name] = wrong
        with pytest.raises(UserError, match=f"^{field}={wrong}.*{says}"):
            validate(config)
    owner[name] = "~/x"
    assert path_field(config, field) == Path("/home/ada/x")


def test_no_path_field_is_missing_from_the_list():
    """Catches a new field that names a file or folder and is not checked."""
    config = get_default_config()
    texts = [("", config), *((f"{name}.", config[name]) for name in ("training", "data", "model", "sampling", "eval"))]
    named = {f"{section}{name}" for section, owner in texts for name in owner if name.endswith(("_dir", "path"))}
    assert named | {"eval.reference", "eval.inception_weights"} == set(PATHS)
