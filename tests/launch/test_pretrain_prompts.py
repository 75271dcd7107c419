"""The pre-training job as users start it: real processes, the real DeepSpeed launcher, real signals."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from corpora.common.rng import generator
from corpora.common.settings import load_settings
from pretrain.checkpoint import checkpoint_path, run_lock, saved_steps
from pretrain.offload import swap_folder
from pretrain.settings import ALL_FORMATS, PretrainSettings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "pretrain_prompts.py"
STEPS = 60
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def launch(config: Path, new_job: Run) -> Run:
    """Starts `ppt pretrain` on two processes."""

    def start(name: str, *overrides: str) -> Any:
        out = config.parent / name
        command = [str(Path(sys.executable).parent / "ppt"), "pretrain", str(config)]
        return new_job([*command, f"out={out}", "processes=2", *overrides], out)

    return start


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
def test_killed_at_three_random_moments_it_ends_with_the_bytes_of_a_run_never_killed(
    config: Path, new_job: Run
) -> None:
    """Without the launcher, whose start takes most of the time; one process runs the same script."""
    command = [sys.executable, str(SCRIPT), str(config), "formats=[sentence_pair,unified]", "steps=100"]
    unbroken, broken = config.parent / "unbroken", config.parent / "broken"
    code, text = new_job([*command, f"out={unbroken}"], unbroken).wait()
    assert code == 0, text
    rng = generator(0, "random moments")
    reached = 0
    for _ in range(3):
        job = new_job([*command, f"out={broken}"], broken)
        job.wait_for_checkpoint(after=reached)  # each start gets further than the one before
        rows = (broken / "metrics.jsonl").read_bytes().count(b"\n")
        job.wait_for_rows(rows + int(rng.integers(0, 12)))
        time.sleep(float(rng.uniform(0, 0.05)))
        job.kill()
        assert not (broken / "finished.json").exists()
        reached = saved_steps(broken)[-1]
    code, text = new_job([*command, f"out={broken}"], broken).wait()
    assert code == 0, text
    for file in ("metrics.jsonl", "finished.json", "prompts/sentence_pair/prompt.safetensors"):
        assert (broken / file).read_bytes() == (unbroken / file).read_bytes(), file


def test_wrong_input_that_only_the_processes_can_see_is_one_line_and_exit_code_2(launch: Run) -> None:
    job = launch("wrong", "init=vocabluary")
    code, text = job.wait()
    assert code == 2
    *before, reason = text.splitlines()
    assert reason == 'ppt: "vocabluary" is no initialisation of a prompt; did you mean "vocabulary"?'
    assert all(line.startswith("plan: ") for line in before)
    assert [path.name for path in job.out.rglob("*")] == [".lock"]


def test_a_second_start_of_a_running_job_ends_all_its_processes_and_leaves_the_first_ones_weights(
    config: Path, new_job: Run
) -> None:
    out, disk = config.parent / "twice", config.parent / "disk"
    disk.mkdir()
    weight = swap_folder(disk, out) / "weight.swp"
    weight.parent.mkdir()
    weight.write_bytes(b"of the first job")
    command = [str(Path(sys.executable).parent / "ppt"), "pretrain", str(config), f"out={out}", "processes=2"]
    overrides = ["zero_stage=3", "offload=nvme", f"nvme_path={disk}", "dtype=bfloat16"]
    with run_lock(out):
        # It ends before DeepSpeed's operator is needed: a machine that cannot compile it will do.
        code, text = new_job([*command, *overrides], out, env={"CXX": "true"}).wait()
    assert code == 2, text
    *before, reason = text.splitlines()
    assert reason == f"ppt: another job is running in {out}; wait for it, stop it or choose another out"
    assert all(line.startswith("plan: ") for line in before)
    assert weight.read_bytes() == b"of the first job"


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


def test_newcomers_see_our_lines_only(config: Path, new_job: Run) -> None:
    command = [sys.executable, str(SCRIPT), str(config), "steps=1", "formats=[unified]"]
    out = config.parent / "quiet"
    code, text = new_job([*command, f"out={out}"], out).wait()
    assert code == 0
    for line in text.splitlines():
        assert (
            line.startswith((str(config.parent), "plan: ", "unified: ", "pre-training: ", "warning: "))
            or "4 x 32" in line
        )
