"""Training metrics out: metrics.jsonl for machines, TensorBoard files for people."""

import json
import time
from pathlib import Path

from tensorboardX import SummaryWriter

from files import write_text


class MetricsWriter:
    """Appends one JSON line per call. A resumed run first drops the lines that it is going to write again."""

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            whole = [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_text(self._path, "".join(line for line in whole if json.loads(line)["step"] <= first_step))
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self._board.close()


class Rate:
    """Steps per second since the last call."""

    def __init__(self, step: int):
        self._step, self._time = step, time.perf_counter()

    def __call__(self, step: int) -> float:
        steps, seconds = step - self._step, time.perf_counter() - self._time
        self._step, self._time = step, time.perf_counter()
        return steps / seconds
