"""Runs the PyTorch side of a benchmark in a separate process, with an interpreter that has PyTorch."""

import os
import subprocess

# By default, waiting threads of PyTorch keep cores busy. This slows our side, and if other jobs use a core, it makes
# PyTorch 3 to 10 times as slow.
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "passive"}


def can_import(python: str, *modules: str) -> bool:
    """Whether an interpreter has all the modules."""
    command = [python, "-c", f"import {', '.join(modules)}"]
    return subprocess.run(command, capture_output=True).returncode == 0


class TorchProcess:
    """A context manager that runs a module. The module answers every line of its standard input with one line."""

    def __init__(self, python: str, module: str, *arguments: str, environment: dict[str, str] | None = None):
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", *arguments],
            env=(environment or {}) | os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self, line: str = "") -> str:
        """Sends a line and returns the answer, both without the newline. Raises RuntimeError if the process ended."""
        print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self._process.args)} ended before it answered")
        return answer.rstrip("\n")

    def __enter__(self) -> "TorchProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
