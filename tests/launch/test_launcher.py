"""The bridge to the `deepspeed` launcher: arguments, presets, exit codes; the launcher itself is a stand-in here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import launch.launcher as launcher
from corpora.common.errors import UserError
from corpora.common.settings import load_settings
from launch.launcher import PRESETS, config_path, split_arguments, start_launcher
from pretrain.settings import PretrainSettings

PRESET_NAMES = ["mt5-xxl", "t5-base", "t5-large", "t5-small", "t5-xl", "t5-xxl"]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `deepspeed` command that writes down how it was called and ends with the exit code in its folder."""
    seen = tmp_path / "seen.json"
    command = tmp_path / "deepspeed"
    command.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], os.environ.get('DS_ACCELERATOR')], open({str(seen)!r}, 'w'))\n"
        f"sys.exit(int(open({str(tmp_path / 'code')!r}).read()))\n"
    )
    command.chmod(0o755)
    (tmp_path / "code").write_text("0")
    monkeypatch.setattr(launcher, "_deepspeed", lambda: str(command))
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    return tmp_path


def start(flags: list[str], processes: int | None = None, cpu: bool = True) -> int:
    return start_launcher(
        Path("script.py"), ["c.yaml"], processes=processes, cpu=cpu, log="critical", flags=flags
    )


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_exit_code_of_the_job_comes_back(stand_in: Path, code: int) -> None:
    (stand_in / "code").write_text(str(code))
    assert start([]) == code


def test_processes_become_the_launchers_flag_and_a_cpu_job_says_so(stand_in: Path) -> None:
    start([], processes=2)
    argv, accelerator = json.loads((stand_in / "seen.json").read_text())
    assert argv[argv.index("--num_gpus") + 1] == "2"
    assert argv[-2:] == ["script.py", "c.yaml"]
    assert accelerator == "cpu"


@pytest.mark.parametrize(
    "flags", [["--hostfile", "hosts", "--master_addr", "n1"], ["--include=n1:0,1"], ["--num_gpus", "4"]]
)
def test_flags_for_the_launcher_pass_through_and_win(stand_in: Path, flags: list[str]) -> None:
    start(flags, processes=2)
    argv, _ = json.loads((stand_in / "seen.json").read_text())
    place = argv.index(flags[0])
    assert argv[place : place + len(flags)] == flags
    assert argv.count("--num_gpus") == flags.count("--num_gpus")


@pytest.mark.parametrize(
    ("arguments", "overrides", "flags"),
    [
        (["steps=3", "--num_gpus", "2"], ["steps=3"], ["--num_gpus", "2"]),
        (["--hostfile", "hosts", "a=1", "b=2"], ["a=1", "b=2"], ["--hostfile", "hosts"]),
        (["--no_ssh", "a=1"], ["a=1"], ["--no_ssh"]),
        (["--num_nodes=2", "x=--y"], ["x=--y"], ["--num_nodes=2"]),
    ],
)
def test_settings_and_flags_are_told_apart(
    arguments: list[str], overrides: list[str], flags: list[str]
) -> None:
    assert split_arguments(arguments) == (overrides, flags)


def test_every_preset_loads_and_clips_each_prompt_on_its_own() -> None:
    assert sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem in PRESET_NAMES) == PRESET_NAMES
    for name in PRESET_NAMES:
        settings = load_settings(PretrainSettings, config_path(name))
        assert settings.learning_rate == pytest.approx(0.1 * 100 / 11.6, rel=1e-2)
        assert settings.weight_decay == pytest.approx(0.01 / 100 * 11.6, rel=1e-2)
        assert settings.clip == pytest.approx(1.0 / 100 * 11.6, rel=1e-2)
        assert settings.eps == pytest.approx(1e-8 / 100 * 11.6, rel=1e-2)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "t5-large"'):
        config_path("t5-larg")


@pytest.mark.parametrize(("argument", "remedy"), [("--steps=20", "steps=20"), ("--batch-size", "batch_size=...")])  # fmt: skip
def test_a_setting_written_as_a_flag_is_refused_here_and_not_by_deepspeed(argument: str, remedy: str) -> None:
    with pytest.raises(UserError, match=f"no flag of the launcher; write {remedy}"):
        split_arguments(["--num_gpus", "2", argument])
