"""Processes that die or hang in a job as users start it; the long form, 20 random kills, is started by `make torture`."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from corpora.common.errors import Stopped
from corpora.common.rng import generator
from corpora.common.settings import load_settings
from pretrain.checkpoint import checkpoint_path, saved_steps
from pretrain.settings import PretrainSettings

STEPS = 60
SMALL = ["formats=[sentence_pair,unified]", "prompt_len=2"]
PPT = str(Path(sys.executable).parent / "ppt")
Launch = Callable[..., Any]


@pytest.fixture
def launch(config: Path, new_job: Callable[..., Any]) -> Launch:
    def start(name: str, processes: int, *overrides: str) -> Any:
        out = config.parent / name
        return new_job(
            [PPT, "pretrain", str(config), *SMALL, f"out={out}", f"processes={processes}", *overrides], out
        )

    return start


def here(config: Path, name: str, should_stop: Callable[[], bool] = lambda: False) -> Path:
    """Run or go on in this process, the only one."""
    from pretrain.engine import pretrain

    run = load_settings(PretrainSettings, config, [*SMALL, f"out={config.parent / name}"])
    pretrain(run, should_stop=should_stop)
    return run.out


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    """A run of one process that nothing disturbed."""
    return here(config, "alone")


def losses(out: Path) -> torch.Tensor:
    """[rows, 2] step and loss of every row that a run wrote."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([[row["step"], row["loss"]] for row in rows])


def close(one: Path, other: Path) -> None:
    """The same run but for rounding: every loss on the way, and the prompts in the end."""
    torch.testing.assert_close(losses(one), losses(other), rtol=2e-3, atol=2e-3)
    first, second = (load_file(checkpoint_path(out, STEPS) / "state.safetensors") for out in (one, other))
    apart = (first["bank.prompts"] - second["bank.prompts"]).norm()
    assert apart < 0.01 * first["bank.prompts"].norm()
    assert float(losses(one)[-1, 1]) < float(losses(one)[0, 1]) - 0.3  # it has learnt something


def test_a_killed_process_ends_the_job_in_a_minute_by_name_and_one_process_goes_on_to_the_same_prompts(
    launch: Launch, config: Path, alone: Path
) -> None:
    job = launch("dead", 2)
    job.wait_for_checkpoint(after=0)
    pid = job.signal_rank(0, signal.SIGKILL)  # the one that speaks and holds torch's store
    began = time.monotonic()
    code, text = job.wait()
    assert code == 1 and time.monotonic() - began < 60
    said = [line for line in text.splitlines() if line.startswith("ppt: ")]
    assert (
        len(said) == 1
        and said[0].startswith("ppt: process 0 (")
        and f"pid {pid}) is gone since step " in said[0]
    )
    assert said[0].endswith(
        "the same command goes on from the last checkpoint, or from the start where there is none"
    )
    assert "Traceback" not in text
    close(here(config, "dead"), alone)


def test_two_processes_go_on_where_one_stopped_and_a_hung_one_is_reported_and_not_waited_for(
    launch: Launch, config: Path, alone: Path
) -> None:
    out = config.parent / "hung"
    with pytest.raises(Stopped):
        here(config, "hung", should_stop=lambda: bool(saved_steps(out)))
    stopped_at = saved_steps(out)[-1]
    assert 0 < stopped_at < STEPS - 20
    job = launch("hung", 2, "process_timeout=8")
    job.wait_for_checkpoint(after=stopped_at)
    pid = job.signal_rank(1, signal.SIGSTOP)
    began = time.monotonic()
    code, text = job.wait()
    assert code == 1 and 7 < time.monotonic() - began < 60
    (error,) = [line for line in text.splitlines() if line.startswith("ppt: ")]
    reported = [line for line in text.splitlines() if line.startswith("warning: process 1 (")]
    assert reported and f"pid {pid}) has not been heard of for " in reported[-1]
    assert f"pid {pid}) has not been heard of for " in error and "(last at step " in error
    assert not psutil.pid_exists(pid)
    close(here(config, "hung"), alone)


@pytest.mark.torture
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_whichever_of_three_processes_dies_one_line_names_it(launch: Launch, rank: int) -> None:
    job = launch(f"dead-{rank}", 3)
    job.wait_for_checkpoint(after=0)
    pid = job.signal_rank(rank, signal.SIGKILL)
    code, text = job.wait()
    assert code == 1
    (said,) = [line for line in text.splitlines() if line.startswith("ppt: ")]
    assert said.startswith(f"ppt: process {rank} (") and f"pid {pid}) is gone since step " in said


@pytest.mark.torture
def test_a_job_of_which_nothing_is_left_says_so_all_the_same(launch: Launch) -> None:
    """As when memory runs out for all processes at once."""
    job = launch("none-left", 2)
    job.wait_for_checkpoint(after=0)
    pids = [process.pid for process in job.processes() if "--local_rank" in " ".join(process.cmdline()[:6])]
    assert len(pids) == 2
    for pid in pids:
        psutil.Process(pid).suspend()
    for pid in pids:
        psutil.Process(pid).kill()
    code, text = job.wait()
    assert code == 1
    (said,) = [line for line in text.splitlines() if line.startswith("ppt: ")]
    assert said == (
        "ppt: the job was ended by signal SIGKILL (perhaps out of memory); the same command goes on from the last "
        "checkpoint, or from the start where there is none"
    )


@pytest.mark.torture
def test_a_slow_process_is_named_while_the_job_goes_on(launch: Launch, alone: Path) -> None:
    """Held up for four fifths of the time by a signal, as by a machine that is shared."""
    job = launch("slow", 2, "steps=400", "eval_every=400", "save_every=400")
    job.wait_for_rows(6)
    pid = job.signal_rank(1, 0)
    while job.process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).suspend()
            time.sleep(0.2)
            psutil.Process(pid).resume()
            time.sleep(0.05)
    code, text = job.wait()
    assert code == 0, text
    assert any(line.startswith("warning: process 1 (") and " s a step, the median is " in line
               for line in text.splitlines())  # fmt: skip


@pytest.mark.torture
def test_twenty_random_kills_of_a_two_process_job_leave_the_bytes_of_a_run_never_killed(
    launch: Launch,
) -> None:
    """SIGKILL or SIGTERM, to one process or all, at random moments, starting, evaluating and saving included."""
    many = ["steps=400", "save_every=3", "eval_every=8", "eval_examples=24"]
    whole = launch("never-killed", 2, *many)
    code, text = whole.wait()
    assert code == 0, text
    rng = generator(0, "twenty kills")
    ended: dict[int, int] = {}
    for kill in range(20):
        job = launch("often-killed", 2, *many)
        if kill % 5:  # every fifth while it still starts
            rows = (job.out / "metrics.jsonl").read_bytes().count(b"\n") if kill > 1 else 0
            job.wait_for_rows(rows + int(rng.integers(1, 24)))
        time.sleep(float(rng.uniform(0.0, 0.3 if kill % 5 else 8.0)))
        victims = ["rank 0", "rank 1", "all"][int(rng.integers(3))]
        number = [signal.SIGKILL, signal.SIGTERM][int(rng.integers(2))]
        if victims == "all" and number == signal.SIGKILL:
            job.kill()
            continue
        if victims == "all":
            job.process.send_signal(number)
        else:
            with contextlib.suppress(ProcessLookupError, AssertionError):
                job.signal_rank(int(victims[-1]), number)
        code, text = job.wait()
        assert "Traceback" not in text, text
        ended[code] = ended.get(code, 0) + 1
        assert code in ((75,) if number == signal.SIGTERM else (1,)), (kill, victims, number, text)
    assert not (job.out / "finished.json").exists(), "the job was over before it had been killed 20 times"
    job = launch("often-killed", 2, *many)
    code, text = job.wait()
    assert code == 0, text
    assert sum(ended.values()) >= 8
    for file in ("metrics.jsonl", "finished.json", "prompts/unified/prompt.safetensors"):
        assert (job.out / file).read_bytes() == (whole.out / file).read_bytes(), file
