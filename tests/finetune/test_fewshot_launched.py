"""Few-shot runs of two processes through the real DeepSpeed launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from finetune.fewshot import run_fewshot
from finetune.settings import FewshotSettings
from finetune.shares import FOLDER
from pretrain.artifact import load_prompt

Start = Callable[[FewshotSettings], subprocess.Popen[str]]
ENDINGS = {"predictions": ".jsonl", "prompts": ""}  # of what lies beside a chosen cell's row
PATIENCE = 300.0  # seconds until a test gives up waiting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `ppt fewshot` as a process of its own; what a failed test leaves is ended with all below it."""
    children = []

    def begin(settings: FewshotSettings) -> subprocess.Popen[str]:
        config = tmp_path / f"{Path(settings.out).name}.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("ppt")), "fewshot", str(config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        children.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        return children[-1]

    yield begin
    for child in children:
        if child.poll() is None:
            for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
                process.kill()
        child.communicate()


def tuning(child: subprocess.Popen[str], out: str) -> list[psutil.Process]:
    """Waits until two processes tune; gives them, the first one first."""
    end = time.monotonic() + PATIENCE
    while not (Path(out) / FOLDER / "0").exists() or not (Path(out) / FOLDER / "1").exists():
        assert time.monotonic() < end and child.poll() is None, "no process tunes"
        time.sleep(0.05)
    found = psutil.Process(child.pid).children(recursive=True)
    script = [p for p in found if any("tune_fewshot.py" in part for part in p.cmdline())]
    workers = [p for p in script if "deepspeed.launcher.launch" not in p.cmdline() and "RANK" in p.environ()]
    return sorted((p for p in workers), key=lambda p: int(p.environ()["RANK"]))


def test_two_processes_end_with_the_rows_of_one_and_tune_all_weights_together(
    small_run: Any, start: Start, tmp_path: Path, comparable: Any
) -> None:
    changes: dict[str, Any] = {"methods": ["ft", "vanilla_pt", "ppt"], "ft_learning_rates": [1e-3, 3e-3]}
    whole = comparable(run_fewshot(small_run(out=str(tmp_path / "one"), **changes)))
    settings = small_run(out=str(tmp_path / "two"), **changes, processes=2, ft_zero_stage=2)
    child = start(settings)
    said = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == 0, said
    assert said.count("results: ") == 1  # one process speaks
    rows, out = comparable(settings.out), Path(settings.out)
    assert rows.keys() == whole.keys() and not (out / FOLDER).exists()
    for cell, row in whole.items():
        for name in ("chosen", "step", "dev", "n_test"):
            assert rows[cell][name] == row[name]
        for name in ("dev_loss", "test_loss"):
            assert rows[cell].get(name) == pytest.approx(row.get(name), abs=1e-4)
        assert (out / "curves" / f"{cell}.jsonl").exists()
        for folder, equal in (("predictions", same_predictions), ("prompts", same_prompt)):
            ones, twos = (tmp_path / run / folder / f"{cell}{ENDINGS[folder]}" for run in ("one", "two"))
            kept = row["chosen"] and (folder == "predictions" or row["method"] != "ft")
            assert ones.exists() == twos.exists() == kept
            if kept:
                equal(ones, twos)


def same_predictions(one: Path, two: Path) -> None:
    """The same labels are predicted, with the same log probabilities to rounding."""
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (one, two)]
    assert len(lines[0]) == len(lines[1]) > 0
    for first, second in zip(*lines, strict=True):
        assert {k: v for k, v in first.items() if k != "log_probs"} == {
            k: v for k, v in second.items() if k != "log_probs"
        }
        assert second["log_probs"] == pytest.approx(first["log_probs"], abs=1e-3)


def same_prompt(one: Path, two: Path) -> None:
    (first_PD, first), (second_PD, second) = load_prompt(one), load_prompt(two)
    assert first == second
    torch.testing.assert_close(second_PD, first_PD, atol=1e-3 * first.embedding_rms, rtol=1e-3)


@pytest.mark.parametrize("ending", ["asked", "killed"])
def test_a_job_of_two_ends_as_a_whole_and_says_why(small_run: Any, start: Start, ending: str) -> None:
    settings = small_run(methods=["vanilla_pt"], epochs=1_500, processes=2, save_seconds=0.2)
    child = start(settings)
    workers = tuning(child, settings.out)
    assert len(workers) == 2
    if ending == "asked":
        child.send_signal(signal.SIGTERM)
    else:
        workers[1].kill()
    said = child.communicate(timeout=PATIENCE)[1]
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive and "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("ppt: ")]
    if ending == "asked":
        assert child.returncode == 75
        assert lines == ["ppt: stopped; the same command goes on from what is finished"]
    else:
        assert child.returncode == 1
        assert len(lines) == 1 and "SIGKILL" in lines[0] and "goes on" in lines[0]
