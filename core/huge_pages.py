"""Large memory pages for the whole process, which only its environment at the start can ask for.

XLA takes a step's buffers anew from the system every time. In pages of 4 KB that was 213,000 page faults a step of the
28x28 network, a sixth of its time; with glibc asking for large ones it is 1,000.
"""

import os
import sys

TUNABLE = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Starts the same command again with TUNABLE set, unless the user set it; to be called before heavy imports.

    Linux alone reads it; the process id and open files stay.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and TUNABLE not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))
        os.execv(sys.executable, sys.orig_argv)
