"""Training metrics out: metrics.jsonl for machines, TensorBoard files for people."""

import json
import time
from pathlib import Path

from tensorboardX import SummaryWriter

from core import files, parallel
from core.errors import UserError


class MetricsWriter:
    """Appends one JSON line per call. A resumed run first drops the lines that it is going to write again.

    Of several processes only the first writes.
    """

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / "metrics.jsonl"
        self._held = _rows_up_to(first_step, self._path)
        files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in self._held))
        board = {"logdir": str(workdir / "tensorboard"), "purge_step": first_step + 1}
        self._board = SummaryWriter(**board, write_to_disk=parallel.is_first())

    def holds(self, step: int, name: str) -> bool:
        """Whether an earlier run wrote a value of this step."""
        return any(row["step"] == step and name in row for row in self._held)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not parallel.is_first():
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self._board.close()


def _rows_up_to(step: int, path: Path) -> list[dict[str, float]]:
    """The rows of the file, if it is there, without a last line that a kill cut; UserError where another is broken."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if row["step"] <= step]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: holds a line that training did not write ({error!r})") from error


class Rate:
    """Steps per second since the last call."""

    def __init__(self, step: int):
        self._step, self._time = step, time.perf_counter()

    def __call__(self, step: int) -> float:
        steps, seconds = step - self._step, time.perf_counter() - self._time
        self._step, self._time = step, time.perf_counter()
        return steps / seconds
