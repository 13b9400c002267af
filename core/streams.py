"""Standard output and standard error that cannot stop the program: what cannot be written is dropped."""

import io
import os
import sys
from typing import TextIO


class _Descriptor(io.FileIO):
    """An open file descriptor. A write that fails is dropped: closed pipe, full disk, terminal that is gone."""

    def write(self, data: bytes) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written  # None: also from a full pipe that does not block


def tolerate_failed_writes() -> None:
    """Replaces sys.stdout and sys.stderr by streams whose writes never raise an error.

    Characters that the encoding lacks are written as escapes. If the parent process has closed a descriptor, it is
    opened on the null device: otherwise the next file that the program opens would get it, and with it the output.
    """
    sys.stdout = _tolerant(1, sys.stdout)
    sys.stderr = _tolerant(2, sys.stderr)


def _tolerant(descriptor: int, stream: TextIO | None) -> TextIO:
    if stream is None:  # Python's stream of a closed descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        if null != descriptor:
            os.close(null)
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=stream is None or stream.line_buffering or stream.write_through,
    )
