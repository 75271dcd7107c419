"""Time limits, stops within an evaluation, and who is slow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pretrain.engine as engine
import pretrain.pace as pace_module
from corpora.common.errors import Stopped, UserError
from corpora.common.settings import save_settings
from pretrain.checkpoint import saved_steps
from pretrain.distributed import Processes
from pretrain.engine import pretrain
from pretrain.pace import Pace, slow_processes
from pretrain.settings import PretrainSettings, check_same_run
from pretrain.watchdog import Watchdog

Make = Callable[..., PretrainSettings]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_run(one: Path, other: Path) -> None:
    for file in ("metrics.jsonl", "finished.json", "prompts/unified/prompt.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_asked_to_stop_within_an_evaluation_it_keeps_nothing_of_it_and_goes_on_to_the_same_bytes(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"formats": ["unified"], "batch_tokens": 200, "steps": 4}  # several micro-batches an evaluation
    whole = settings(**small)
    pretrain(whole)
    run = settings(out=f"{whole.out}-stopped", **small)
    asked: list[int] = []  # how often in each evaluation of this start
    real = engine.evaluate

    def evaluate(*args: Any) -> Any:
        *rest, stops = args
        asked.append(0)

        def counted() -> bool:
            asked[-1] += 1
            return stops()

        return real(*rest, counted)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "evaluate", evaluate)
        for nth, step in (
            (1, 0),
            (2, 3),
        ):  # in the middle of the evaluation of step 0, then of that of step 3
            asked.clear()
            with pytest.raises(Stopped, match=f"stopped after step {step};"):
                pretrain(run, should_stop=lambda nth=nth: len(asked) == nth and asked[-1] == 2)  # type: ignore[misc]
            assert saved_steps(run.out)[-1] == step
            assert not [row for row in rows(run.out) if row["split"] == "validation" and row["step"] == step]
    pretrain(run)
    same_run(whole.out, run.out)


def test_before_the_time_limit_the_run_saves_and_asks_to_be_started_again(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which an update takes 30 s and a checkpoint 100 s."""
    whole = settings(formats=["unified"], save_every=100)
    pretrain(whole)
    clock = [1000.0]
    monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def taking(seconds: float, name: str) -> Callable[..., Any]:
        real = getattr(pace_module.Pace, name)

        def slow(*args: Any) -> Any:
            clock[0] += seconds
            return real(*args)

        return slow

    monkeypatch.setattr(pace_module.Pace, "end_step", taking(30.0, "end_step"))
    monkeypatch.setattr(pace_module.Pace, "saved", taking(100.0, "saved"))
    run = settings(out=f"{whole.out}-limited", formats=["unified"], save_every=100, time_limit=180 / 3600)
    reached = []
    while True:
        began = clock[0]
        try:
            pretrain(run, began=began)
            break
        except Stopped as stopped:
            assert stopped.exit_code == 75
            reached.append(saved_steps(run.out)[-1])
            assert clock[0] - began <= 230  # of the time of a first checkpoint nothing was known
    # 4 x 30 s and two more of them kept in reserve; then two updates more, until the end is near enough to be reached.
    assert reached == [4]
    same_run(whole.out, run.out)


def test_a_time_limit_that_lets_nothing_be_done_is_refused_instead_of_started_again_for_ever(
    settings: Make,
) -> None:
    with pytest.raises(UserError, match=r"time_limit is 1e-06 h, which is over before the run gets anywhere"):
        pretrain(settings(formats=["unified"], time_limit=1e-6))
    begun = settings(seed=1)
    assert (begun.out / "config.yaml").exists()
    (begun.out / "checkpoints" / "step-00000001.partial").mkdir(parents=True)
    check_same_run(begun)  # nothing was saved: other settings may begin in its folder


@pytest.mark.parametrize("change", [{"time_limit": 2.0}, {"process_timeout": 60}, {"on_nonfinite": "skip"}])
def test_what_ends_a_start_may_change_when_the_run_goes_on(settings: Make, change: dict[str, Any]) -> None:
    run = settings(time_limit=5.0)
    save_settings(run.out / "config.yaml", run)
    (run.out / "checkpoints" / "step-00000001").mkdir(parents=True)
    check_same_run(settings(**change))
    with pytest.raises(UserError, match='"seed"'):
        check_same_run(settings(**change, seed=1))


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([1.0, 1.0, 1.0, 1.0], []),
        ([1.0, 1.4, 1.0, 1.0], []),
        ([1.0, 1.0, 1.6, 1.1], [2]),
        ([2.0, 1.0], [0]),
        ([3.0, 1.0, 1.0, 3.0], [0, 3]),
        ([0.0, 0.0], []),
        ([1.0], []),
    ],
)
def test_the_slow_are_those_far_above_the_median(seconds: list[float], slow: list[int]) -> None:
    assert slow_processes(seconds) == slow


class Two(Processes):
    """The first of two processes; the other one sends what it is told to."""

    def gather(self, value: Any) -> list[Any]:
        return [value, "other-host"]


def test_a_slow_process_is_named_with_its_host_and_both_times(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pace_module, "REPORT_EVERY", 2)
    pace = Pace(settings(), Two(0, 2, torch.device("cpu")), lambda: False, Watchdog(tmp_path, 60), 0.0)
    for step in range(4):
        pace.begin_step(step)
        tail = pace.end_step(step)
        assert tail.tolist()[:2] == [0, 0] and tail[3] == 0
        tail[2:] = torch.tensor([1.0, 1.0 if step < 2 else 2.5])
        assert not pace.read(tail, step)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "warning: process 1 (other-host) computes 2.5 s a step, the median is 1 s: the others wait for it (step 4)"
    )
