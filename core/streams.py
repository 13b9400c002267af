"""Standard output and standard error that cannot stop the program: output that cannot be written is dropped."""

import io
import os
import sys
from typing import TextIO


class _Descriptor(io.FileIO):
    """An open file descriptor. A write that fails (closed pipe, full disk, closed terminal) is dropped."""

    def write(self, data: bytes) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written  # FileIO.write returns None if a non-blocking pipe is full


def tolerate_failed_writes() -> None:
    """Replaces sys.stdout and sys.stderr by streams whose writes never raise an error.

    Characters that the encoding lacks are written as escapes. If the parent process closed a descriptor, this function
    opens it on the null device. Otherwise the next file that the program opens would get this descriptor, and the
    output would be written into that file.
    """
    sys.stdout = _tolerant(1, sys.stdout)
    sys.stderr = _tolerant(2, sys.stderr)


def _tolerant(descriptor: int, stream: TextIO | None) -> TextIO:
    if stream is None:  # Python sets the stream to None if the descriptor is closed
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
