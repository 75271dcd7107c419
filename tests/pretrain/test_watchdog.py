"""Dead and hung processes are named and the others do not wait for ever. Real processes, without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pretrain.watchdog as watchdog_module
from pretrain.watchdog import Watchdog, ask_to_stop, forget_stop, nobody_spoke, read_lines

# A process of a job: "train" steps for ever, "wait" waits for the others, "stuck" does neither; told to by a file, "lose"
# sees its connection fail and "end" ends in order.
SCRIPT = """
import sys, time
from pathlib import Path
from pretrain import watchdog
watchdog.GRACE = 2.0
out, timeout, does = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
with watchdog.Watchdog(out, timeout) as dog:
    dog.at(41, "training", waits=does == "wait")
    for step in range(10**6):
        if does == "train":
            dog.at(41 + step // 10, "training")
        if does == "lose" and (out / "now").exists():
            raise watchdog.LostProcess("the collective failed")
        if does == "end" and (out / "now").exists() or dog.stop_asked:
            break
        time.sleep(0.1)
"""
Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Start]:
    """Starts one process for each word, and waits until all are watched."""
    started: list[subprocess.Popen[str]] = []

    def start(*does: str, timeout: float = 6.0) -> list[subprocess.Popen[str]]:
        for rank, what in enumerate(does):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", SCRIPT, str(tmp_path), str(timeout), what],
                    env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(len(does))},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        deadline = time.monotonic() + 60
        while len([line for line in read_lines(tmp_path).values() if line.beat >= 3]) < len(does):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, text = process.communicate(timeout=60)
    return process.returncode, [line for line in text.splitlines() if line.startswith(("ppt: ", "warning: "))]


@pytest.mark.parametrize(("stopped", "speaks"), [(1, 0), (0, 1)])
def test_a_stopped_process_is_reported_then_ends_the_job(
    job: Start, tmp_path: Path, stopped: int, speaks: int
) -> None:
    processes = job("wait", "wait", "wait")
    began = time.monotonic()
    processes[stopped].send_signal(signal.SIGSTOP)
    code, (*_, warning, error) = ends(processes[speaks])
    assert code == 1 and 5 < time.monotonic() - began < 40
    name = rf"process {stopped} (HOST, pid {processes[stopped].pid})".replace("HOST", os.uname().nodename)
    assert warning.startswith(f"warning: {name} has not been heard of for ")
    assert warning.endswith(" s (last at step 41, training); the others wait")
    assert error.startswith(f"ppt: {name} has not been heard of for ")
    assert error.endswith(
        "the same command goes on from the last checkpoint, or from the start where there is none"
    )
    assert processes[stopped].wait(timeout=10) == -signal.SIGKILL  # it could not hear the launcher's SIGTERM
    third = ends(processes[2])
    assert third == (1, [])  # one line for the job, not one a process


def test_a_process_that_stands_still_while_the_others_wait_is_reported_then_ends_the_job(job: Start) -> None:
    """It is alive, its watchdog writes; its training thread hangs."""
    processes = job("wait", "stuck")
    code, (*_, warning, error) = ends(processes[0])
    assert code == 1
    assert "process 1 (" in warning and " has been training at step 41 for " in warning
    assert warning.endswith("; the others wait") and error.startswith("ppt: process 1 (")


def test_nobody_is_reported_while_all_get_on(job: Start) -> None:
    processes = job("train", "train", timeout=2.0)
    time.sleep(4)
    assert [process.poll() for process in processes] == [None, None]
    for process in processes:
        process.terminate()
    assert [ends(process)[1] for process in processes] == [[], []]


def test_a_dead_process_ends_a_job_that_hangs_in_its_collective(job: Start) -> None:
    """As with NCCL, which does not see that a process is gone."""
    processes = job("wait", "stuck", timeout=600.0)
    processes[1].kill()
    code, lines = ends(processes[0])
    assert code == 1
    assert lines == [
        f"ppt: process 1 ({os.uname().nodename}, pid {processes[1].pid}) is gone since step 41; "
        "the same command goes on from the last checkpoint, or from the start where there is none"
    ]


@pytest.mark.parametrize(("dead", "speaks"), [(1, 0), (0, 1)])
def test_a_lost_connection_is_explained_by_who_is_gone(
    job: Start, tmp_path: Path, dead: int, speaks: int
) -> None:
    processes = job("lose", "lose", timeout=600.0)
    processes[dead].kill()
    (tmp_path / "now").touch()
    _, text = processes[speaks].communicate(timeout=30)
    assert f"LostProcess: process {dead} (" in text and "is gone since step 41" in text
    assert sorted(read_lines(tmp_path)) == [dead]  # the survivor took its line away
    assert not nobody_spoke(tmp_path, {})


def test_one_that_ended_in_order_has_spoken_for_itself(job: Start, tmp_path: Path) -> None:
    processes = job("wait", "end", timeout=600.0)
    (tmp_path / "now").touch()
    assert ends(processes[1])[0] == 0
    assert ends(processes[0]) == (1, [])


def test_when_all_died_nobody_spoke(job: Start, tmp_path: Path) -> None:
    for process in job("train", "train"):
        process.kill()
        process.wait()
    left = read_lines(tmp_path)
    assert sorted(left) == [0, 1]
    assert nobody_spoke(tmp_path, {})
    assert not nobody_spoke(tmp_path, {0: left[0]})  # left behind by an earlier start: 0 was alive this time


def test_a_stop_asked_for_in_the_folder_reaches_all(job: Start, tmp_path: Path) -> None:
    processes = job("train", "train", timeout=600.0)
    ask_to_stop(tmp_path)
    assert [ends(process) for process in processes] == [(0, []), (0, [])]
    forget_stop(tmp_path)
    assert [path.name for path in (tmp_path / watchdog_module.FOLDER).glob("*")] == []


def test_a_line_left_by_a_dead_process_of_an_earlier_start_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / watchdog_module.FOLDER
    folder.mkdir()
    done = subprocess.Popen(["true"])
    done.wait()
    old = {"rank": 1, "world": 2, "host": "h", "space": "s", "pid": done.pid, "born": 1.0, "beat": 7}
    (folder / "1").write_text(json.dumps(old))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(watchdog_module, "EVERY", 0.05)
    monkeypatch.setattr(watchdog_module, "GRACE", 0.1)
    with Watchdog(tmp_path, 2.0):
        time.sleep(1.5)
    assert capsys.readouterr().err == "warning: process 1 of 2 has not begun yet; the others wait\n"


def test_a_disk_that_takes_no_lines_makes_nobody_look_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / watchdog_module.FOLDER).write_text("a file where the folder should be")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(watchdog_module, "EVERY", 0.05)
    with Watchdog(tmp_path, 0.5):
        time.sleep(1.5)
    assert capsys.readouterr().err == ""


def test_a_job_of_one_process_writes_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 1.0) as dog:
        dog.at(3, "training")
    assert list(tmp_path.iterdir()) == []
