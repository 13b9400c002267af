"""The training log: metrics.jsonl for programs, and TensorBoard files."""

import json
import time
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter

from core import files, parallel
from core.errors import UserError


class MetricsWriter:
    """A context manager whose `write` appends a line of JSON to metrics.jsonl and logs to TensorBoard.

    first_step is the step from which training resumes. Lines of later steps are removed, because they will be written
    again. If there are several processes, only the first one writes. Raises UserError if metrics.jsonl is not readable.
    """

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / "metrics.jsonl"
        self._earlier_rows = _rows_up_to(first_step, self._path)
        files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in self._earlier_rows))
        self._board = SummaryWriter(
            logdir=str(workdir / "tensorboard"), purge_step=first_step + 1, write_to_disk=parallel.is_first()
        )

    def holds(self, step: int, name: str) -> bool:
        """Whether an earlier run wrote a value of this name for this step."""
        return any(row["step"] == step and name in row for row in self._earlier_rows)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the named values of a step."""
        if not parallel.is_first():
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._board.close()


def _rows_up_to(step: int, path: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl up to a step; empty if there is no file.

    A last line without a line break is dropped, because the process was killed while it wrote the line. Raises
    UserError if any other line is not a JSON object with a step.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if row["step"] <= step]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: holds a line that training did not write ({error!r})") from error


class Rate:
    """Returns the steps per second since the last call. Counting begins at the step given to the constructor."""

    def __init__(self, step: int):
        self._step = step
        self._time = time.perf_counter()

    def __call__(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self._step) / (now - self._time)
        self._step = step
        self._time = now
        return rate
