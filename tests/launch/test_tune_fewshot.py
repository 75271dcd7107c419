"""`ppt fewshot` in this process and under the launcher; the launcher itself is a stand-in where nothing else is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import finetune.fewshot
import launch.launcher as launcher
from corpora.common.errors import UserError
from finetune import settings
from finetune.settings import INITS
from launch.launcher import launch_fewshot
from pretrain.prompts import INITIALISERS


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a run on a CPU; nothing in them is there."""
    path = tmp_path / "fewshot.yaml"
    values = {"out": str(tmp_path / "run"), "backbone": "none", "tasks": ["sst2"], "device": "cpu"}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was started: `here` the settings of a run in this process; `command` and `threads` of the launcher, by a stand-in."""
    seen: dict[str, Any] = {}
    command, note = tmp_path / "deepspeed", tmp_path / "seen.json"
    command.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], os.environ.get('OMP_NUM_THREADS')], open({str(note)!r}, 'w'))\n"
        "sys.exit(75)\n"
    )
    command.chmod(0o755)
    monkeypatch.setattr(launcher, "_deepspeed", lambda: str(command))
    monkeypatch.setattr(finetune.fewshot, "run_fewshot", lambda settings: seen.update(here=settings))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen["note"] = note
    return seen


def command_of(started: dict[str, Any]) -> list[str]:
    return list(json.loads(started["note"].read_text())[0])


def test_one_process_runs_here(config: Path, started: dict[str, Any]) -> None:
    for arguments in (["seeds=[7]"], ["seeds=[7]", "processes=1"]):
        assert launch_fewshot(config, arguments) == 0
        assert started.pop("here").seeds == (7,)
    assert not started["note"].exists()


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["processes=2"], ["--num_gpus", "2"]),
        (["--num_gpus", "3"], ["--num_gpus", "3"]),
        (["processes=2", "--hostfile=hosts"], ["--hostfile=hosts"]),
        (["processes=1", "--num_gpus=4"], ["--num_gpus=4"]),
    ],
)
def test_several_processes_go_through_the_launcher(
    config: Path, started: dict[str, Any], arguments: list[str], flags: list[str]
) -> None:
    assert launch_fewshot(config, ["seeds=[7]", *arguments]) == 75  # its exit code comes back
    assert "here" not in started
    command = command_of(started)
    place = command.index(flags[0])
    assert command[place : place + len(flags)] == flags
    assert command.count("--num_gpus") <= 1
    settings = [argument for argument in arguments if not argument.startswith("--") and "=" in argument]
    script = str(Path(launcher.__file__).parent / "tune_fewshot.py")
    assert command[command.index(script) :] == [script, str(config), "seeds=[7]", *settings]


def test_each_process_of_a_cpu_gets_its_part_of_the_cores(
    config: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher.os, "sched_getaffinity", lambda pid: set(range(8)))
    launch_fewshot(config, ["processes=3"])
    assert json.loads(started["note"].read_text())[1] == "2"


def test_a_setting_that_is_written_as_a_flag_is_refused(config: Path) -> None:
    with pytest.raises(UserError, match=r"--shots=4 is a setting and no flag of the launcher; write shots=4"):
        launch_fewshot(config, ["--shots=4"])


def test_a_machine_with_gpus_gets_a_process_for_each_unless_it_is_told(
    config: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(launcher, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config.write_text(config.read_text().replace("device: cpu\n", ""))
    launch_fewshot(config, [])
    assert "--num_gpus" not in command_of(started)  # the launcher counts by itself
    assert launch_fewshot(config, ["device=cpu"]) == 0 and launch_fewshot(config, ["processes=1"]) == 0
    assert launch_fewshot(config, ["device=cuda:1"]) == 0  # one GPU, one process
    monkeypatch.setattr(settings, "has_gpu", lambda: True)
    assert settings.fast_dtype(None) == settings.fast_dtype("cuda:1") == "bfloat16"


def test_settings_are_read_without_torch_and_know_every_initialisation() -> None:
    code = "import launch.launcher, finetune.settings, sys; print('torch' in sys.modules)"
    root = Path(launcher.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"  # the launcher starts seconds sooner
    assert set(INITS) == set(INITIALISERS)
