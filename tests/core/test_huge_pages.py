import subprocess
import sys

import pytest

PROGRAM = """
import os
from core.huge_pages import restart_with_huge_pages
print(os.getpid())
restart_with_huge_pages()
import sys
print(os.getpid(), os.environ["GLIBC_TUNABLES"], *sys.argv[1:], sys.flags.optimize)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux restarts")
@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        (None, "glibc.malloc.hugetlb=1", 2),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1", 2),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0", 1),
    ],
)
def test_restarts_once_as_the_same_command(before, after, runs, tmp_path):
    """Catches an endless restart, lost arguments or Python flags, a new process id, or an overridden user setting."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {"PYTHONPATH": ".", "PYTHONUNBUFFERED": "1"} | ({"GLIBC_TUNABLES": before} if before else {})
    command = [sys.executable, "-O", tmp_path / "program.py", "--flag=a b"]
    *first, last = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.splitlines()
    pid = first[0]
    assert first == [pid] * runs
    assert last == f"{pid} {after} --flag=a b 1"
