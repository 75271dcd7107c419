"""`ppt plan` as a person and as a program read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launch.plan_command as plan_command
from corpora.common.errors import UserError
from corpora.common.settings import load_settings
from launch.launcher import PRESETS
from launch.plan_command import plan_job
from pretrain.devices import Fleet, this_cpu
from pretrain.plan_run import plan_of
from pretrain.settings import PretrainSettings
from pretrain.shapes import find_shape

PPT = str(Path(sys.executable).with_name("ppt"))


def planned(backbone: str | None, gpus: str, *overrides: str, **options: Any) -> tuple[dict[str, Any], str]:
    return plan_job(backbone, gpus, options.pop("config", None), list(overrides), **options)


def test_the_command_prints_a_table_and_a_pick_in_seconds(tmp_path: Path) -> None:
    command = [PPT, "plan", "--backbone", "t5-xxl", "--gpus", "8xH100-80GB"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "11.1 B weights" in done.stdout and "take data parallel 8: " in done.stdout
    assert "tensor parallel 2 x data parallel 4" in done.stdout and "ZeRO 3, CPU offload" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_has_every_strategy_with_its_parts() -> None:
    value, _ = planned("t5-xxl", "8xH100-80GB")
    value = json.loads(json.dumps(value))
    assert value["pick"]["name"] == "data parallel 8"
    assert value["pick"] in value["strategies"]
    assert value["pick"]["settings"]["zero_stage"] == 0
    assert value["work"]["prompts"] == 4 and value["work"]["examples"] == 1024
    assert value["devices"]["count"] == 8
    assert any("unmeasured" in line for line in value["assumptions"])


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_runs_as_planned_on_eight_gpus_of_40_gb(name: str) -> None:
    value, _ = planned(name, "8xA100-40GB")
    assert value["pick"]["fits"]


def test_settings_narrow_the_choice() -> None:
    value, text = planned("t5-xxl", "8xH100-80GB", "zero_stage=3", "offload=none", "batch_tokens=4096")
    assert value["pick"]["name"] == "ZeRO 3 over 8"
    assert {one["settings"]["batch_tokens"] for one in value["strategies"]} == {4096}
    assert "data parallel 8 " not in text


def test_all_shows_every_strategy_with_and_without_checkpointing() -> None:
    _, some = planned("t5-xl", "H100-80GB")
    value, everything = planned("t5-xl", "H100-80GB", everything=True)
    assert everything.count("checkpointing") == len(value["strategies"]) // 2
    assert some.count("\n") < everything.count("\n")


def test_a_narrow_terminal_gets_fewer_columns_and_no_number_is_cut() -> None:
    _, whole = planned("t5-xxl", "8xL4-24GB")
    assert "activ." in whole and "needs 24.3 of 21.3 usable GiB\n" in whole
    for columns in (50, 80, 120):
        value, text = planned("t5-xxl", "8xL4-24GB", columns=columns)
        assert "activ." not in text and "…" not in text and "fits" in text
        pick = value["pick"]
        assert f"{pick['tokens_per_second']:,.0f}" in text and f"{pick['hours']:,.1f}" in text
    _, asked = planned("t5-xxl", "8xL4-24GB", columns=80, everything=True)
    assert "activ." in asked and "needs 24.3 of 21.3 usable GiB\n" in asked


def test_this_machines_processor_is_measured() -> None:
    value, _ = planned("google/t5-v1_1-small", "2xCPU", "dtype=float32")
    assert any("(measured)" in line for line in value["assumptions"])
    assert value["pick"]["fits"]


def test_on_this_machine_it_plans_the_runs_processes_and_picks_what_the_run_picks_however_fast_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["device=cpu", "processes=2", f"out={tmp_path}", "dtype=float32"]
    picks = []
    for rate in (1e9, 1e15):
        monkeypatch.setattr(plan_command, "measure_cpu", lambda dtype, rate=rate: rate)
        value, _ = plan_job("google/t5-v1_1-small", None, None, overrides)
        assert value["devices"]["count"] == 2
        picks.append(value["pick"])
    run = load_settings(PretrainSettings, None, [*overrides, "backbone=google/t5-v1_1-small", "corpora=none"])
    chosen, _, _ = plan_of(run, find_shape(run.backbone), Fleet(this_cpu(2), 2))
    assert chosen.pick is not None
    assert picks[0]["settings"] == picks[1]["settings"] == chosen.pick.settings()
    assert picks[0]["hours"] > picks[1]["hours"]


def test_lengths_and_share_may_be_given() -> None:
    one, _ = planned("t5-xxl", "H100-80GB", tokens=200, share=0.3)
    other, _ = planned("t5-xxl", "H100-80GB", tokens=200, share=0.6)
    assert one["work"]["tokens"] == 200
    assert one["pick"]["hours"] / other["pick"]["hours"] == pytest.approx(2, rel=0.05)


def test_unknown_devices_and_settings_are_named() -> None:
    with pytest.raises(UserError, match='did you mean "H100-80GB"'):
        planned("t5-xxl", "8xH100-8GB")
    with pytest.raises(UserError, match='did you mean "batch_tokens"'):
        planned("t5-xxl", "H100-80GB", "batch_token=3")
