"""Jobs as users start them: real processes with all their children, and the settings of a run of seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pretrain.checkpoint import saved_steps
from pretrain.watchdog import read_lines

ROOT = Path(__file__).parents[2]


class Job:
    """A job with all its processes."""

    def __init__(self, command: list[str], out: Path, **options: Any) -> None:
        self.out = out
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        environment.pop("RANK", None)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
        )  # fmt: skip

    def wait(self) -> tuple[int, str]:
        text, _ = self.process.communicate(timeout=900)
        return self.process.returncode, text

    def wait_for_rows(self, n: int) -> None:
        """Wait until metrics.jsonl has `n` lines or the job is over."""
        path = self.out / "metrics.jsonl"
        while self.process.poll() is None:
            if path.exists() and path.read_bytes().count(b"\n") >= n:
                return
            time.sleep(0.005)

    def wait_for_checkpoint(self, after: int) -> None:
        """Wait until a checkpoint of a later step than `after` is whole; the job must still be running then."""
        while not any(step > after for step in saved_steps(self.out)):
            assert self.process.poll() is None, "the job ended before it saved"
            time.sleep(0.005)

    def signal_rank(self, rank: int, number: int) -> int:
        """Send a signal to one of the training processes; gives its pid."""
        while rank not in (lines := read_lines(self.out)):
            assert self.process.poll() is None, "the job ended before it was watched"
            time.sleep(0.05)
        os.kill(lines[rank].pid, number)
        return lines[rank].pid

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def kill(self) -> None:
        """SIGKILL to every process of the job."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="session")
def new_job() -> Iterator[Callable[..., Job]]:
    """Starts a command as a job of a run's folder; what is still there at the end is killed."""
    jobs: list[Job] = []

    def start(command: list[str], out: Path, **options: Any) -> Job:
        jobs.append(Job(command, out, **options))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            job.kill()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, build_dir: Path, backbone_dir: Path) -> Path:
    """A run of seconds, long enough to be killed in the middle; ZeRO 3 shards even its small weights."""
    folder = tmp_path_factory.mktemp("launched")
    zero = json.loads((ROOT / "launch" / "zero" / "zero3.json").read_text())
    zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3.json").write_text(json.dumps(zero))
    values: dict[str, Any] = {
        "out": str(folder / "run"), "corpora": str(build_dir), "backbone": str(backbone_dir), "prompt_len": 4,
        "steps": 60, "batch_size": 4, "batch_tokens": 2000, "eval_every": 10, "save_every": 7, "log_every": 1,
        "eval_examples": 8, "device": "cpu", "learning_rate": 0.5,
    }  # fmt: skip
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(values))
    return folder / "pretrain.yaml"
