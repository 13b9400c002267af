"""The house: README's table of floors against what the rooms import."""

import ast
import re

from datasets import REPOSITORY


def floors() -> dict[str, int]:
    """Each room of README's table, in the table's order, and its floor; a room that stands twice is an error."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE)
    named = [(room, int(floor)) for floor, rooms in rows for room in re.findall(r"`(\w+)(?:\.py|/)`", rooms)]
    assert len(dict(named)) == len(named)
    return dict(named)


def rooms() -> dict[str, list]:
    """Each room and its files."""
    packages = [path.parent for path in REPOSITORY.glob("*/__init__.py")]
    return {path.stem: [path] for path in REPOSITORY.glob("*.py")} | {
        path.name: [*path.rglob("*.py")] for path in packages
    }


def imported(path) -> set[str]:
    """The top of every module that a file names in an import, wherever it stands."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_every_room_stands_in_the_readme():
    """A room that nobody is told of, or a row for one that is gone."""
    assert set(floors()) == set(rooms())


def test_rooms_import_only_from_floors_below():
    """A circle, or a shortcut upwards."""
    floor = floors()
    wrong = [
        f"{room} (floor {floor[room]}) imports {other} (floor {floor[other]})"
        for room, paths in rooms().items()
        for other in set().union(*map(imported, paths)) & set(floor) - {room}
        if floor[other] >= floor[room]
    ]
    assert not wrong
