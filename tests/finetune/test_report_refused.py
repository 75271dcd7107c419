"""`ppt report` where the machine refuses to write: one line, exit code 1, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import MachineError
from finetune.report import report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of one cell."""
    row = {
        "cell": "c0", "task": "sst2", "method": "ppt", "shots": 32, "seed": 0, "learning_rate": 0.3, "dev": 0.5,
        "init": "feed", "chosen": True, "test": 0.5, "backbone_fingerprint": "b",
    }  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path / "run"


def ppt_report(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [str(Path(sys.executable).with_name("ppt")), "report", *map(str, arguments)]
    return subprocess.run(
        command,
        **{"stdout": subprocess.PIPE, **options},
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
        env=environment,
    )


def test_a_disk_that_fills_while_a_report_is_written_leaves_whole_files_only(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {path.name: path.read_bytes() for path in report([run], tmp_path / "whole").files}
    real = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == refused:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    for refused in ("bars.png", "report.html"):
        with monkeypatch.context() as patch, pytest.raises(MachineError) as caught:
            patch.setattr(os, "replace", full)
            report([run], tmp_path / "out")
        line = f"cannot write {tmp_path / 'out' / refused}: no space left on device; nothing half-written is left there"
        assert str(caught.value) == line and caught.value.exit_code == 1
        there = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert there.items() <= whole.items() and refused not in there


def test_a_real_refusal_in_the_middle_of_a_report_is_one_line_and_exit_1(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = ppt_report(
        run, "--out", out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    )
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("ppt: "))
    assert line.startswith(f"ppt: cannot write {out}/bars.png: file too large") and not list(out.iterdir())


def test_a_report_of_somebody_elses_run_is_one_line_and_exit_1_and_goes_elsewhere(
    run: Path, tmp_path: Path, as_its_owner: Callable[[], None]
) -> None:
    run.chmod(0o555)
    done = ppt_report(run, preexec_fn=as_its_owner)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"ppt: cannot write {run}/bars.png: permission denied")
    assert [path.name for path in run.iterdir()] == ["results.jsonl"]


def test_a_report_that_standard_output_does_not_take_is_one_line_and_exit_1(
    run: Path, tmp_path: Path
) -> None:
    with open("/dev/full", "w") as full:
        done = ppt_report(run, "--out", tmp_path / "out", stdout=full)
    assert done.returncode == 1
    line = "ppt: standard output: no space left on device"
    assert [said for said in done.stderr.splitlines() if said.strip()] == [line]
