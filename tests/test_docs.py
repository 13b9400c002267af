"""Checks README.md and docs/: the flags of every command, the modules of every script, links, and length.

bash runs the code blocks of each page, where python is a function that prints its arguments. Nothing of the
program runs except the parsing of flags and the validation of configs.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from core.files import REPOSITORY

PAGES = ["README.md", *sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/*.md"))]
REPRODUCE = "docs/reproduce.md"
LINKED_PAGES = [*PAGES, "CONTRIBUTING.md", "assets/weights/README.md", "tests/data/README.md"]

# Flags can be parsed once per process, so each command has a separate process.
PROCESSES = get_context("forkserver")

# In the blocks, only `python main.py` exists, which prints its arguments. read and loops are built into bash. srun
# runs its arguments, and gcloud runs what it would send to another machine.
RECORDER = """
PATH=/nonexistent
python() { [ "$1" != main.py ] || (IFS=$'\\037'; echo "$*"); }
.() { :; }
cd() { :; }
srun() { "$@"; }
gcloud() { for arg; do case $arg in --command=*) eval "${arg#--command=}";; esac; done; }
command_not_found_handle() { :; }
"""


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def without_fences(text: str) -> str:
    """Returns a page without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def bash_blocks(text: str) -> list[str]:
    """Returns the code blocks of a page that contain commands: fenced as bash, or indented by four spaces."""
    fenced = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?<=\n\n)(?: {4}.*\n)+", without_fences(text))
    return [*fenced, *indented]


def commands(page: str) -> list[list[str]]:
    """Returns the arguments of every call of main.py in the blocks of a page, with loops unrolled."""
    script = RECORDER + "\n".join(bash_blocks(read(page)))
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    return [line.split("\037") for line in done.stdout.splitlines()]


def accept(call: list[str]) -> None:
    """Parses one call and validates its config and those of all runs of a sweep. Raises UserError for a mistake."""
    import main
    from configs.runs import expand_starts, sweep_configs
    from configs.validation import validate

    if not any(argument.startswith("--config=") for argument in call) and "--mode=verify" not in call:
        # This replaces the config that the workdir or the imported file would give.
        call = [call[0], "--config=configs/ddpm/cifar10.py", *call[1:]]
    sys.argv = call  # ml_collections reads the overrides from here
    config = main.parse(call)
    runs = [config] if config else []  # verify needs none
    if main.FLAGS.mode == "sweep":
        runs += sweep_configs(config, config.sweep.n_steps, expand_starts(config.sweep.t_starts))
    for run in runs:
        validate(run)


def accept_all(calls: list[list[str]]) -> None:
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    PROCESSES.set_forkserver_preload(["main", "configs.runs", "configs.validation"])
    with PROCESSES.Pool(2, maxtasksperchild=1) as pool:
        pool.map_async(accept, calls, chunksize=1).get(timeout=120)


def test_reproduce_calls_every_mode_that_it_needs():
    """Catches a block that the recorder does not see, or a loop that it does not enter."""
    modes = [re.search("--mode=(\\w+)", " ".join(call))[1] for call in commands(REPRODUCE)]
    assert {mode: modes.count(mode) for mode in modes} == {
        "import": 4, "prepare": 4, "train": 3, "fid_stats": 7, "sweep": 7, "eval": 1,
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_recorded(page):
    """Catches a command outside fenced or indented blocks, whose flags would not be checked."""
    written = re.findall(r"^(?!\|).*python main\.py --", re.sub("`[^`\n]*`", "", read(page)), re.MULTILINE)
    assert len(commands(page)) >= len(written)


@pytest.mark.parametrize("mode", ["import", "prepare", "train", "fid_stats", "sweep", "eval"])
def test_commands_of_reproduce_are_accepted(mode):
    """Catches a flag, field or value that was renamed, or is no longer allowed."""
    calls = [call for call in commands(REPRODUCE) if f"--mode={mode}" in call]
    accept_all(calls[:: max(len(calls) // 5, 1)])  # some of the calls that a loop makes


@pytest.mark.parametrize("page", [page for page in PAGES if page != REPRODUCE and commands(page)])
def test_commands_of_a_page_are_accepted(page):
    """Catches the same on the other pages. Placeholders such as PATH are used where any value is allowed."""
    accept_all(commands(page))


@pytest.mark.parametrize("page", PAGES)
def test_fields_that_a_page_names_exist(page):
    """Catches an override --config.section.field in the text whose field was renamed."""
    from configs.default import get_default_config

    config = get_default_config()
    for field in re.findall(r"--config\.([a-z_0-9.]+[a-z_0-9])", read(page)):
        if field == "section.field":  # the general form
            continue
        value = config
        for name in field.split("."):
            assert name in value, f"{page}: no field {field}"
            value = value[name]


@pytest.mark.parametrize("page", LINKED_PAGES)
def test_scripts_that_a_page_names_exist(page):
    """Catches a benchmark, experiment or example that was moved or renamed."""
    modules = re.findall(r"python -m ((?:benchmarks|experiments|examples)\.\w+)", read(page))
    scripts = re.findall(r"python ((?:benchmarks|experiments|examples)/\S+?\.py)", read(page))
    paths = [*(module.replace(".", "/") + ".py" for module in modules), *scripts]
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_names_in_python_blocks_exist(page):
    """Catches an import, or an attribute of an imported module, that was moved or renamed."""
    fenced = re.findall(r"^```python\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)
    inline = re.findall(r"<<'EOF'\n(.*?)^EOF$", read(page), re.DOTALL | re.MULTILINE)
    for block in [*fenced, *inline]:
        modules = {}
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                modules |= {name.asname or name.name: importlib.import_module(name.name) for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                exec(ast.unparse(node), modules)
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                assert hasattr(modules[node.value.id], node.attr), f"{page}: {ast.unparse(node)}"


def anchors(path: Path) -> set[str]:
    """Returns the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED_PAGES)
def test_links_of_a_page_lead_somewhere(page):
    """Catches a link to a file or a heading that was moved or renamed."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(read(page))):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


@pytest.mark.parametrize(("page", "most"), [("README.md", 180), ("CONTRIBUTING.md", 80)])
def test_page_is_short(page, most):
    """Catches a page that has grown too long; longer texts belong in docs/."""
    assert len(read(page).splitlines()) <= most
