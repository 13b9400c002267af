"""Paths that the user gives, in flags and in fields of the config."""

import os
import re
from pathlib import Path

from ml_collections import ConfigDict

from core.errors import UserError


def expanded(path: str, name: str) -> Path:
    """The path with ~ replaced by the home folder.

    name: the flag or field, for messages. Raises UserError for a URL, or if the home folder is not known.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise UserError(f"{name}={path} is a URL: give a path on this machine, and copy the files from or to the URL")
    home = os.path.expanduser(path)
    if home.startswith("~") or (path.startswith("~") and os.environ.get("HOME") == ""):
        raise UserError(f"{name}={path}: the home folder {path.split('/')[0]} is not known: give the path without ~")
    return Path(home)


def path_field(config: ConfigDict, field: str) -> Path:
    """The path in the field "section.name" of the config, expanded by `expanded`."""
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    return expanded(config[name], field)
