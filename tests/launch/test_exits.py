"""How commands and processes end: one line, said once, and an exit code."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch.pretrain_prompts
import launch.train_backbone
import pretrain.backbone_training
import pretrain.engine
from corpora.common.errors import MachineError, Stopped, UserError
from launch import exits


@pytest.fixture(autouse=True)
def own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts take over signals; the tests get theirs back."""
    monkeypatch.delenv("RANK", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


REFUSED = PermissionError(errno.EACCES, "Permission denied", "/data/corpus")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such key"), 2, "no such key"),
        (MachineError("cannot write x"), 1, "cannot write x"),
        (Stopped("stopped after step 3"), 75, "stopped after step 3"),
        (REFUSED, 1, "/data/corpus: permission denied"),
        (OSError("Not enough\nmore"), 1, "not enough"),
        (OSError(), 1, "oserror"),
        (KeyboardInterrupt(), 75, "stopped; the same command goes on from what is finished"),
    ],
)
def test_each_ending_is_one_line_and_its_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits.end(error) == code
    assert capsys.readouterr().err == f"ppt: {line}\n"


def test_processes_after_the_first_speak_only_when_nobody_ends_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert exits.end(UserError("wrong"), ended=lambda: True) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(exits, "PATIENCE", 0.0)
    assert exits.end(UserError("wrong")) == 2
    assert capsys.readouterr().err == "ppt: process 1: wrong\n"


@pytest.mark.parametrize("script", ["pretrain_prompts", "train_backbone"])
def test_what_the_system_refuses_a_job_is_no_traceback(
    script: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    build_dir: Path,
    backbone_dir: Path,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise REFUSED

    config = tmp_path / "config.yaml"
    if script == "pretrain_prompts":
        config.write_text(f"out: {tmp_path}/run\ncorpora: {build_dir}\nbackbone: {backbone_dir}\nsteps: 1\n")
        monkeypatch.setattr(pretrain.engine, "pretrain", refused)
    else:
        config.write_text(f"out: {tmp_path}/run\ninit: {backbone_dir}\nsteps: 0\n")
        monkeypatch.setattr(pretrain.backbone_training, "train_backbone", refused)
    monkeypatch.setattr(sys, "argv", [script, str(config)])
    assert getattr(launch, script).main() == 1
    *others, last = capsys.readouterr().err.splitlines()
    assert last == "ppt: /data/corpus: permission denied"
    assert not [line for line in others if not line.startswith("plan: ")]
