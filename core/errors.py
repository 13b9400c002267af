"""The exceptions that are no bugs: what the user can mend, and what was asked to stop."""

import signal
import sys


class UserError(Exception):
    """A mistake of the user's, found before long work starts.

    Its text is one line: the value, what is allowed, what to do. `main.py` prints that line and exits with code 2;
    every other exception is a bug and keeps its traceback.
    """


class Stopped(Exception):
    """A signal (SIGTERM, where several processes agreed to stop) ended the work after a step, whose state is saved."""

    def __init__(self, step: int, number: int = signal.SIGTERM):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, which is saved")
        self.number = number


def warn(text: str) -> None:
    """One line for a trouble that the work goes on in spite of."""
    print(f"main.py: warning: {text}", file=sys.stderr)
