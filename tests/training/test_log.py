"""The file metrics.jsonl of interrupted runs."""

import json

from training.log import MetricsWriter


def test_resumed_run_writes_no_step_twice(tmp_path):
    """Catches old lines of steps after the checkpoint, or an incomplete line, that stay among the new lines."""
    with MetricsWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with MetricsWriter(tmp_path, 2) as writer:
        writer.write(3, {"loss": 30.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 30.0}]
    assert list((tmp_path / "tensorboard").glob("events*"))
