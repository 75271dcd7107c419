"""The pre-training job as users start it: real processes, the real DeepSpeed launcher, real signals."""

from __future__ import annotations

import contextlib
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
from safetensors.torch import load_file

from corpora.common.rng import generator
from corpora.common.settings import load_settings
from pretrain.checkpoint import checkpoint_path, saved_steps
from pretrain.settings import ALL_FORMATS, PretrainSettings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "pretrain_prompts.py"
STEPS = 60
Run = Callable[..., "Job"]


class Job:
    """A job with all its processes."""

    def __init__(self, command: list[str], out: Path) -> None:
        self.out = out
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("RANK", None)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
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

    def kill(self) -> None:
        """SIGKILL to every process of the job."""
        top = psutil.Process(self.process.pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, build_dir: Path, backbone_dir: Path) -> Path:
    """A run of seconds, long enough to be killed in the middle; ZeRO 3 shards even its small weights."""
    folder = tmp_path_factory.mktemp("launched")
    zero = json.loads((ROOT / "launch" / "zero" / "zero3.json").read_text())
    zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3.json").write_text(json.dumps(zero))
    values: dict[str, Any] = {
        "out": str(folder / "run"), "corpora": str(build_dir), "backbone": str(backbone_dir), "prompt_len": 4,
        "steps": STEPS, "batch_size": 4, "batch_tokens": 2000, "eval_every": 10, "save_every": 7, "log_every": 1,
        "eval_examples": 8, "device": "cpu", "learning_rate": 0.5,
    }  # fmt: skip
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(values))
    return folder / "pretrain.yaml"


@pytest.fixture(scope="module")
def launch(config: Path) -> Iterator[Run]:
    """Starts `ppt pretrain` on two processes."""
    jobs: list[Job] = []

    def start(name: str, *overrides: str) -> Job:
        out = config.parent / name
        command = [str(Path(sys.executable).parent / "ppt"), "pretrain", str(config)]
        jobs.append(Job([*command, f"out={out}", "processes=2", *overrides], out))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            job.kill()


@pytest.fixture(scope="module")
def whole(launch: Run) -> Path:
    """A run on two processes that nothing disturbed."""
    job = launch("whole")
    code, text = job.wait()
    assert code == 0, text
    return job.out


def last_prompts(out: Path) -> torch.Tensor:
    """[K, P, D] prompts after the last step, whichever step is exported."""
    return load_file(checkpoint_path(out, STEPS) / "state.safetensors")["bank.prompts"]


@pytest.fixture(scope="module")
def start(config: Path) -> torch.Tensor:
    """[K, P, D] prompts before the first step."""
    from pretrain.engine import pretrain

    run = load_settings(
        PretrainSettings, config, [f"out={config.parent / 'start'}", "steps=1", "export_step=0"]
    )
    pretrain(run)
    return torch.stack(
        [load_file(run.out / "prompts" / name / "prompt.safetensors")["prompt"] for name in ALL_FORMATS]
    )


def same_bytes(one: Path, other: Path) -> None:
    files = [
        "metrics.jsonl",
        "finished.json",
        *(f"prompts/{name}/prompt.safetensors" for name in ALL_FORMATS),
    ]
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def close(one: Path, other: Path, start: torch.Tensor) -> None:
    """The same prompts but for rounding; they have moved, for prompts that learnt nothing are the same, too."""
    first, second = last_prompts(one), last_prompts(other)
    for name, a, b, before in zip(ALL_FORMATS, first, second, start, strict=True):
        moved, apart = (a - before).norm(), (a - b).norm()
        assert moved > 0.5 * before.norm(), name
        assert apart < 0.01 * moved, name


def test_two_processes_learn_the_prompts_of_one(whole: Path, config: Path, start: torch.Tensor) -> None:
    from pretrain.engine import pretrain

    alone = load_settings(PretrainSettings, config, [f"out={config.parent / 'alone'}"])
    pretrain(alone)
    close(alone.out, whole, start)


def test_zero_3_with_a_sharded_backbone_learns_the_prompts_of_zero_0(
    launch: Run, whole: Path, config: Path, start: torch.Tensor
) -> None:
    job = launch("zero3", "zero_stage=3", f"deepspeed_config={config.parent / 'zero3.json'}")
    code, text = job.wait()
    assert code == 0, text
    assert "ZeRO 3, 2 processes" in text
    close(whole, job.out, start)


@pytest.mark.torture
@pytest.mark.parametrize("overrides", [["zero_stage=1"], ["zero_stage=2"], ["zero_stage=3"]])
def test_every_zero_preset_learns_the_same_prompts(
    launch: Run, whole: Path, start: torch.Tensor, overrides: list[str]
) -> None:
    job = launch("-".join(overrides), *overrides)
    code, text = job.wait()
    assert code == 0, text
    close(whole, job.out, start)


@pytest.mark.defect(10)
def test_stopped_and_killed_under_the_launcher_it_goes_on_to_the_same_bytes(launch: Run, whole: Path) -> None:
    job = launch("disturbed")
    job.wait_for_rows(25)
    job.process.send_signal(signal.SIGTERM)  # to ppt alone, as a scheduler does
    code, text = job.wait()
    assert code == 75, text
    assert "the same command goes on from" in text
    reached = saved_steps(job.out)[-1]
    assert reached < STEPS

    job = launch("disturbed")
    job.wait_for_checkpoint(after=reached)
    job.kill()
    assert not (job.out / "finished.json").exists()
    job = launch("disturbed")
    code, text = job.wait()
    assert code == 0, text
    assert "going on from step" in text
    same_bytes(whole, job.out)


@pytest.mark.defect(10)
def test_killed_at_three_random_moments_it_ends_with_the_bytes_of_a_run_never_killed(config: Path) -> None:
    """Without the launcher, whose start takes most of the time; one process runs the same script."""
    command = [sys.executable, str(SCRIPT), str(config), "formats=[sentence_pair,unified]", "steps=100"]
    unbroken, broken = config.parent / "unbroken", config.parent / "broken"
    code, text = Job([*command, f"out={unbroken}"], unbroken).wait()
    assert code == 0, text
    rng = generator(0, "random moments")
    reached = 0
    for _ in range(3):
        job = Job([*command, f"out={broken}"], broken)
        job.wait_for_checkpoint(after=reached)  # each start gets further than the one before
        rows = (broken / "metrics.jsonl").read_bytes().count(b"\n")
        job.wait_for_rows(rows + int(rng.integers(0, 12)))
        time.sleep(float(rng.uniform(0, 0.05)))
        job.kill()
        assert not (broken / "finished.json").exists()
        reached = saved_steps(broken)[-1]
    code, text = Job([*command, f"out={broken}"], broken).wait()
    assert code == 0, text
    for file in ("metrics.jsonl", "finished.json", "prompts/sentence_pair/prompt.safetensors"):
        assert (broken / file).read_bytes() == (unbroken / file).read_bytes(), file


def test_wrong_input_that_only_the_processes_can_see_is_one_line_and_exit_code_2(launch: Run) -> None:
    job = launch("wrong", "init=vocabluary")
    code, text = job.wait()
    assert code == 2
    assert text.splitlines() == [
        'ppt: "vocabluary" is no initialisation of a prompt; did you mean "vocabulary"?'
    ]
    assert [path.name for path in job.out.rglob("*")] == [".lock"]


def test_other_settings_in_a_runs_folder_are_refused_before_anything_starts(launch: Run, whole: Path) -> None:
    code, text = launch("whole", "seed=1").wait()
    assert code == 2
    assert text.splitlines() == [
        f'ppt: {whole} was begun with "seed" 0, now it is 1; go on with the first or choose another out'
    ]


def test_a_finished_job_says_so_and_ends_well(launch: Run, whole: Path) -> None:
    code, text = launch("whole").wait()
    assert code == 0
    assert text.splitlines() == [
        f"{whole} is finished: its prompts are in {whole / 'prompts'}; choose another out to train again"
    ]


def test_newcomers_see_our_lines_only(config: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(config), "steps=1", "formats=[unified]"]
    out = config.parent / "quiet"
    code, text = Job([*command, f"out={out}"], out).wait()
    assert code == 0
    for line in text.splitlines():
        assert (
            line.startswith((str(config.parent), "plan: ", "unified: ", "pre-training: ", "warning: "))
            or "4 x 32" in line
        )
