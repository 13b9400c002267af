"""Exceptions that are not bugs (errors that the user can correct, and a stop by a signal), and warnings."""

import signal
import sys


class UserError(Exception):
    """An error that the user can correct. Where possible, it is raised before long work starts.

    The text is one line: the value, what is allowed, and what to do. `main.py` prints that line and exits with code 2.
    Every other exception except Stopped is a bug and keeps its traceback.
    """


class Stopped(Exception):
    """A signal ended training after a step whose state is saved.

    Attributes:
      number: the number of the signal, SIGTERM if several processes agreed to stop.
    """

    def __init__(self, step: int, number: int = signal.SIGTERM):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, which is saved")
        self.number = number


def warn(text: str) -> None:
    """Prints one line about a problem that does not stop the work to stderr, above a progress bar if there is one."""
    from tqdm import tqdm  # imported here, because most commands print no warning

    tqdm.write(f"main.py: warning: {text}", file=sys.stderr)
