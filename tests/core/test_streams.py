"""Output that cannot be written: a small program without JAX writes to streams that fail."""

import subprocess
import sys

import pytest

from core.files import REPOSITORY

WRITER = """
import sys
from core.streams import tolerate_failed_writes
tolerate_failed_writes()
from tqdm import tqdm
for i in tqdm(range(2000), desc="b\\u00e4r", mininterval=0):
    print("line \\u753b \\udcff", i)
with open(sys.argv[1], "w") as file:
    file.write("done")
"""


@pytest.mark.parametrize(
    ("redirection", "printed"),
    [
        ("", "line \u753b \\udcff 1999"),
        (">/dev/full 2>/dev/full", ""),
        (">&- 2>&-", ""),
        ("<&- >&- 2>&-", ""),
        ("2>&1 | head -c 10 >/dev/null", ""),
        ("2>&1 >/dev/full | head -c 10 >/dev/null", ""),
        (">/proc/self/fd/0 </dev/null", ""),
    ],
)
@pytest.mark.parametrize("options", [[], ["-u"]])
def test_what_cannot_be_written_stops_nothing(tmp_path, redirection, printed, options):
    """Catches a traceback or an exit code of the last flush, and output to a file that reused a closed descriptor."""
    command = f'"$0" "$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    arguments = [sys.executable, *options, "-c", WRITER, tmp_path / "file"]
    environment = {"PYTHONIOENCODING": "utf-8", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/bash", "-c", command, *arguments], cwd=REPOSITORY, capture_output=True, env=environment
    )
    assert (tmp_path / "file").read_text() == "done"
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert done.stdout.decode().strip().split("\n")[-1] == printed


def test_characters_that_the_encoding_lacks_are_escaped(tmp_path):
    """Catches a UnicodeEncodeError on a terminal that shows only ASCII."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER, tmp_path / "file"],
        cwd=REPOSITORY,
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii:strict"},
    )
    assert done.stdout.splitlines()[-1] == b"line \\u753b \\udcff 1999" and b"b\\xe4r: 100%" in done.stderr
