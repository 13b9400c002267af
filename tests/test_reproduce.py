"""docs/reproduce.md against the program: its commands are run by bash, with a recorder in the program's place."""

import os
import re
import subprocess
import sys
from multiprocessing import get_context

import pytest

from core.files import REPOSITORY

PROCESSES = get_context("forkserver")  # each command needs flags that nobody has parsed

# No command of the document can be found but `python main.py`, which prints its arguments; read and loops are bash's.
RECORDER = """
PATH=/nonexistent
python() { [ "$1" != main.py ] || (IFS=$'\\037'; echo "$*"); }
.() { :; }
command_not_found_handle() { :; }
"""


def commands() -> list[list[str]]:
    """The arguments of every call of main.py that the document's blocks make, from top to bottom."""
    text = (REPOSITORY / "docs/reproduce.md").read_text(encoding="utf-8")
    script = RECORDER + "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    return [line.split("\037") for line in done.stdout.splitlines()]


def accept(calls: list[list[str]], index: int) -> None:
    """What a child does: parses the call and checks every run that it asks for, as far as that needs no file."""
    import main
    from configs.runs import sweep_configs
    from configs.validation import validate

    sys.argv = calls[index]  # where ml_collections looks for overrides
    config = main.parse(sys.argv)
    runs = [config]
    if main.FLAGS.mode == "sweep":
        runs += sweep_configs(config, config.sweep.n_steps, config.sweep.t_starts)
    for run in runs:
        validate(run)


def test_the_document_calls_every_mode_that_it_needs():
    """Blocks that the recorder does not see, or a loop that it does not enter."""
    modes = [re.search("--mode=(\\w+)", " ".join(call))[1] for call in commands()]
    assert {mode: modes.count(mode) for mode in modes} == {
        "import": 2, "prepare": 4, "train": 3, "fid_stats": 5, "sweep": 5, "eval": 45,
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["import", "prepare", "train", "fid_stats", "sweep", "eval"])
def test_the_documents_commands_are_accepted(mode):
    """A flag, field or value that the program has renamed, or no longer allows."""
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    PROCESSES.set_forkserver_preload(["main", "configs.runs", "configs.validation"])
    calls = [call for call in commands() if f"--mode={mode}" in call]
    differing = calls[:: max(len(calls) // 5, 1)]  # of loops over settings, some
    children = [PROCESSES.Process(target=accept, args=(differing, index)) for index in range(len(differing))]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * len(children)
