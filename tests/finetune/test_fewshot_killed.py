"""Few-shot runs that are killed, asked to end or refused by the machine, and go on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from corpora.common.errors import MachineError
from finetune.fewshot import run_fewshot
from finetune.full_tuning import FullTuner
from finetune.settings import FewshotSettings

Start = Callable[..., subprocess.Popen[str]]
PATIENCE = 120.0  # seconds until a test gives up waiting


class Killed(Exception):
    """Stands in for SIGKILL: nothing catches it."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `ppt fewshot` as a process of its own, `before` called in it; what a failed test leaves is ended."""
    children = []

    def begin(settings: FewshotSettings, before: Callable[[], object] | None = None) -> subprocess.Popen[str]:
        config = tmp_path / "fewshot.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("ppt")), "fewshot", str(config)]
        children.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=before))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def wait_until(fact: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    """Wait for a fact as long as the process lives."""
    end = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < end, "it took too long"
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.005)


def lines(out: str | Path) -> list[dict[str, Any]]:
    """Rows of a run so far, a half-written last one left out."""
    path = Path(out) / "results.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def written(out: str | Path) -> dict[str, bytes]:
    """Files beside the rows and what they hold."""
    out = Path(out)
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]
    return {name: (out / name).read_bytes() for name in names if name not in ("results.jsonl", "config.yaml")}


def test_a_killed_run_goes_on_and_ends_with_the_rows_and_files_of_one_that_was_not(
    small_run: Any, start: Start, tmp_path: Path, comparable: Any
) -> None:
    changes: dict[str, Any] = {"methods": ["ft", "vanilla_pt", "ppt"], "prompts_together": 2}
    whole = run_fewshot(small_run(out=str(tmp_path / "whole"), **changes))
    rows = comparable(whole)
    settings = small_run(out=str(tmp_path / "killed"), **changes)
    child = start(settings)
    wait_until(lambda: len(lines(settings.out)) >= 3, child)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    kept = comparable(settings.out)
    assert 3 <= len(kept) < len(rows) and kept.items() <= rows.items()

    again = start(settings)
    said = again.communicate(timeout=PATIENCE)[1]
    assert again.returncode == 0, said
    assert f"{len(kept)} of {len(rows)} cells" in said
    assert comparable(settings.out) == rows
    assert written(settings.out) == written(whole)


@pytest.mark.torture
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_at_random_moments_change_no_row_and_no_file(
    small_run: Any, start: Start, tmp_path: Path, comparable: Any, processes: int
) -> None:
    changes: dict[str, Any] = {
        "methods": ["vanilla_pt", "ppt", "lm_adaption", "ft"], "prompts_together": 3, "epochs": 250, "eval_every": 25,
        "save_seconds": 0.5, "processes": processes, "of_task": {"mood": {"ft_epochs": 10}},
    }  # fmt: skip
    whole = small_run(out=str(tmp_path / "whole"), **changes)
    assert start(whole).wait(PATIENCE * 5) == 0
    settings = small_run(out=str(tmp_path / "killed"), **changes)
    rng, kills = np.random.default_rng(processes), 0
    while True:
        child = start(settings)
        try:
            # After twenty it may run to its end.
            assert child.wait(float(rng.uniform(4, 9) * processes**0.5) if kills < 20 else PATIENCE * 5) == 0
            break
        except subprocess.TimeoutExpired:
            family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family)
            kills += 1
    print(f"{kills} kills with {processes} processes")
    assert kills == 20
    assert comparable(settings.out) == comparable(whole.out)
    assert written(settings.out) == written(whole.out)


def test_a_disk_that_is_full_at_any_write_is_one_line_and_the_run_goes_on_later(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comparable: Any
) -> None:
    changes: dict[str, Any] = {"methods": ["vanilla_pt"], "seeds": [0], "epochs": 1}
    whole = run_fewshot(small_run(out=str(tmp_path / "whole"), **changes))
    settings = small_run(out=str(tmp_path / "refused"), **changes)
    real, calls = os.fsync, 0
    for refused_from in itertools.count(1):
        calls = 0

        def full(descriptor: int, first: int = refused_from) -> None:
            nonlocal calls
            calls += 1
            if calls >= first:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                run_fewshot(settings)
                break
            except MachineError as error:
                line = rf"cannot write {settings.out}/\S+: no space left on device; nothing half-written is left there"
                assert re.fullmatch(line, str(error)) and error.exit_code == 1
        assert not list(Path(settings.out).rglob("*.partial"))
        assert lines(settings.out) == []  # the rows come last
    assert refused_from > 10
    assert comparable(settings.out) == comparable(whole)
    assert written(settings.out) == written(whole)


def limited(n_bytes: int) -> Callable[[], object]:
    """A limit on every file's size, which is refused as a full disk is, in the middle of a write."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.parametrize("place", ["schedule/0/main.safetensors", "curves/"])
def test_a_real_refusal_in_the_middle_of_a_write_is_one_line_and_exit_1(
    small_run: Any, start: Start, place: str
) -> None:
    long = {"epochs": 60, "eval_every": 1, "save_seconds": 1e9} if place == "curves/" else {"epochs": 1}
    settings = small_run(methods=["vanilla_pt"], prompts_together=2, **long)
    child = start(settings, limited(3500))  # room for the settings, not for a checkpoint or a long curve
    said = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == 1 and "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("ppt: "))
    assert line.startswith(f"ppt: cannot write {settings.out}/{place}") and "file too large" in line
    assert not list(Path(settings.out).rglob("*.partial"))
    assert lines(settings.out) == []


def test_a_folder_that_may_not_be_written_is_one_line_and_exit_1(
    small_run: Any, start: Start, tmp_path: Path, as_its_owner: Callable[[], None]
) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    settings = small_run(methods=["vanilla_pt"], out=str(tmp_path / "closed" / "run"))
    child = start(settings, as_its_owner)
    said = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == 1
    assert said.splitlines()[-1] == (
        f"ppt: cannot write {settings.out}: permission denied; nothing half-written is left there"
    )
    assert not list((tmp_path / "closed").iterdir())


@pytest.mark.parametrize("stage", [None, 2])
def test_full_tuning_that_is_killed_after_every_rate_ends_with_the_bytes_of_one_that_was_not(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comparable: Any, stage: int | None
) -> None:
    rates = [1e-3, 3e-3, 1e30]  # the last one is not chosen
    changes: dict[str, Any] = {
        "methods": ["ft"],
        "ft_learning_rates": rates,
        "epochs": 6,
        "ft_zero_stage": stage,
    }
    whole = run_fewshot(small_run(out=str(tmp_path / "whole"), seeds=[0], **changes))
    settings = small_run(out=str(tmp_path / "killed"), seeds=[0], **changes)
    real, tuned = FullTuner.tune, 0

    def one_rate_a_start(*given: Any) -> Any:
        nonlocal tuned
        tuned += 1
        if tuned == 2:
            raise Killed
        return real(*given)

    monkeypatch.setattr(FullTuner, "tune", one_rate_a_start)
    for _ in range(3):
        tuned = 0
        with pytest.raises(Killed):
            run_fewshot(settings)
    assert lines(settings.out) == []
    tuned = 0
    run_fewshot(settings)  # the chosen rate again, for its weights
    assert comparable(settings.out) == comparable(whole)
    assert written(settings.out) == written(whole)
