"""metrics.jsonl and its TensorBoard twin, whatever ended the run before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from corpora.common.errors import UserError
from pretrain.backbone_metrics import Metrics
from pretrain.metric_rows import MetricRows

FULL = """
import resource, sys
from pathlib import Path
from corpora.common.errors import MachineError
from pretrain.metric_rows import MetricRows
rows = MetricRows(Path(sys.argv[1]), 0, 0)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
for step in range(30):
    rows.write({"step": step, "text": "x" * int(sys.argv[2])}, {"loss": 1.0})
try:
    rows.sync()
except MachineError as error:
    print(error)
print((Path(sys.argv[1]) / "metrics.jsonl").read_bytes().count(b"\\n"))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
if sys.argv[3] == "freed":
    rows.sync()
"""


def steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("length", "file"), [(90, "metrics.jsonl"), (0, "events.out.tfevents")])
def test_a_full_disk_leaves_whole_rows_and_one_line_to_say(tmp_path: Path, length: int, file: str) -> None:
    """Neither half a row nor the traceback of a thread, whichever of the two files is refused."""
    command = [sys.executable, "-c", FULL, str(tmp_path), str(length), "full"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    warning, error = done.stderr.splitlines(), done.stdout.splitlines()[0]
    assert error.startswith(f"cannot write {tmp_path}/") and file in error and "file too large" in error
    assert warning == [f"warning: {error}; rows wait in memory until there is room"]  # once, not a row
    assert steps(tmp_path) == list(range(len(steps(tmp_path)))) != []


@pytest.mark.parametrize("length", [90, 0])
def test_rows_that_a_full_disk_refused_are_written_when_there_is_room_again(
    tmp_path: Path, length: int
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = [sys.executable, "-c", FULL, str(tmp_path), str(length), "freed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    if length:
        assert int(done.stdout.splitlines()[-1]) < 30
    assert steps(tmp_path) == list(range(30))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(30))


def test_tensorboard_reads_the_events_and_hides_those_after_the_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, value in ((0, 1.0), (2, 5.0)):
        rows = MetricRows(tmp_path, 0, start)
        for step in range(start + 1, start + 4):
            rows.write({"step": step}, {"train/loss": value})
        rows.close()
        first, *rest = sorted((tmp_path / "tensorboard").iterdir())
        if not rest:
            os.rename(first, first.with_name("events.out.tfevents.0000000001.host.1.0"))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (1, 1.0), (2, 1.0), (3, 5.0), (4, 5.0), (5, 5.0),
    ]  # fmt: skip


def test_rows_after_the_checkpoint_are_cut_and_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    rows = MetricRows(tmp_path, 0, 0)
    rows.write({"step": 1}, {})
    kept = rows.sync()
    rows.write({"step": 2}, {})
    rows.close()
    MetricRows(tmp_path, kept, 1).close()
    assert steps(tmp_path) == [1]
    with pytest.raises(UserError, match="changed by hand"):
        MetricRows(tmp_path, kept + 1, 1)


def test_a_backbones_run_goes_on_after_a_row_that_was_half_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with Metrics(tmp_path, 2, True) as metrics:
        metrics.write(3, "train", {"span": 1.0})
    assert steps(tmp_path) == [1, 2, 3]
    with Metrics(tmp_path, 5, True):
        pass
    assert steps(tmp_path) == [1, 2, 3]
