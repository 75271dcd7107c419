"""Real `ppt fewshot` processes that are killed or asked to end, and go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from finetune.fewshot import run_fewshot
from finetune.settings import FewshotSettings

Start = Callable[[FewshotSettings], subprocess.Popen[str]]
PATIENCE = 120.0  # seconds until a test gives up waiting


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `ppt fewshot` as a process of its own; what a failed test leaves of them is ended."""
    children = []

    def begin(settings: FewshotSettings) -> subprocess.Popen[str]:
        config = Path(settings.out).with_suffix(".yaml")
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("ppt")), "fewshot", str(config)]
        children.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
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


def without_seconds(out: str | Path) -> dict[str, dict[str, Any]]:
    return {row["cell"]: {k: v for k, v in row.items() if k != "seconds"} for row in lines(out)}


def written(out: str | Path) -> dict[str, bytes]:
    """Files beside the rows and what they hold."""
    out = Path(out)
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]
    return {name: (out / name).read_bytes() for name in names if name not in ("results.jsonl", "config.yaml")}


def test_a_killed_run_goes_on_and_ends_with_the_rows_and_files_of_one_that_was_not(
    small_run: Any, start: Start, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"methods": ["ft", "vanilla_pt", "ppt"], "prompts_together": 2}
    whole = run_fewshot(small_run(out=str(tmp_path / "whole"), **changes))
    rows = without_seconds(whole)
    settings = small_run(out=str(tmp_path / "killed"), **changes)
    child = start(settings)
    wait_until(lambda: len(lines(settings.out)) >= 3, child)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    kept = without_seconds(settings.out)
    assert 3 <= len(kept) < len(rows) and kept.items() <= rows.items()

    again = start(settings)
    said = again.communicate(timeout=PATIENCE)[1]
    assert again.returncode == 0, said
    assert f"{len(kept)} of {len(rows)} cells" in said
    assert without_seconds(settings.out) == rows
    assert written(settings.out) == written(whole)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_of_a_run_end_with_it_at_once(small_run: Any, start: Start, number: signal.Signals) -> None:
    settings = small_run(methods=["vanilla_pt"], prompts_together=2, epochs=2000, processes=2)
    child = start(settings)
    wait_until(lambda: len(workers(child)) == 2, child)
    left = workers(child)
    child.send_signal(number)
    _, alive = psutil.wait_procs(left, timeout=PATIENCE)
    for process in alive:  # let no failed test go on eating the machine
        process.kill()
    said = child.communicate(timeout=PATIENCE)[1]
    assert not alive and lines(settings.out) == []
    if number == signal.SIGTERM:
        assert child.returncode == 75 and "Traceback" not in said
        assert said.splitlines()[-1] == "ppt: stopped; the same command goes on from what is finished"


def workers(child: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that a run shares its cells out over; multiprocessing has another one beside them."""
    found = psutil.Process(child.pid).children(recursive=True)
    return [process for process in found if any("spawn_main" in part for part in process.cmdline())]
