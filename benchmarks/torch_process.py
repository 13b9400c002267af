"""The other side of a benchmark, in a process with an interpreter that has PyTorch."""

import os
import subprocess

# By default PyTorch's idle threads spin. They take the cores from our side, and where other jobs hold a core, PyTorch
# itself takes 3 to 10 times as long.
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "passive"}


def can_import(python: str, *modules: str) -> bool:
    """Whether an interpreter has all the modules."""
    command = [python, "-c", f"import {', '.join(modules)}"]
    return subprocess.run(command, capture_output=True).returncode == 0


class TorchProcess:
    """A running module of benchmarks that answers every line of its standard input with one line. A context manager."""

    def __init__(self, python: str, module: str, *arguments: str, environment: dict[str, str] | None = None):
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", *arguments],
            env=(environment or {}) | os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self, line: str = "") -> str:
        """The answer to a line, both without the newline. Raises RuntimeError if the process has ended."""
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
