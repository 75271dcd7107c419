"""The few-shot bench on a tiny shape: every side runs, the sides compute the same, the ratios follow from the seconds."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
HIDDEN = ("PPT_DATA", "LOCAL_RANK")  # real data; what DeepSpeed left behind in this process


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of `benchmarks`; no real data."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delenv("PPT_DATA", raising=False)
    return importlib.import_module


@pytest.fixture
def ground(benches: Any, tmp_path: Path) -> Any:
    data = benches("fewshot_data")
    return data.prepare(tmp_path, "tiny", data.PLANS["tiny"], "sst2")


def dry_run(tmp_path: Path, sides: str) -> dict[str, Any]:
    env = {key: value for key, value in os.environ.items() if key not in HIDDEN} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_fewshot.py"), "--dry-run", "--only", sides]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "runs" / "bench" / "fewshot.json").read_text())
    return found


def test_a_dry_run_divides_the_seconds_of_one_by_one_and_peft_by_ours(tmp_path: Path) -> None:
    found = dry_run(tmp_path, "default,together,one_by_one,peft_loop")
    tiny = found["raw"]["tiny"]
    sides = ("default", "together", "one_by_one", "peft_loop")
    medians = {name: statistics.median(tiny[name]["seconds"]) for name in sides}
    best = min(("default", "together"), key=lambda name: medians[name])
    assert tiny["best"] == best and tiny["text"] == "generated" and tiny["cells"] == 4
    assert found["ratios"].keys() == {"tiny/one_by_one", "tiny/peft_loop"}
    for rival in ("one_by_one", "peft_loop"):  # one round, so a median of ratios is the ratio of medians
        assert found["ratios"][f"tiny/{rival}"] == pytest.approx(medians[rival] / medians[best])
        assert (
            tiny[rival]["seconds"][0] > tiny[rival]["measured"]
        )  # one of two rates ran, the other's cells count too
    assert 0 < found["ceiling_share"]["tiny"] < 1
    share = tiny["count"]["encoder"] / medians[best] / max(tiny["ceiling_flops"].values())
    assert found["ceiling_share"]["tiny"] == pytest.approx(share)


@pytest.mark.torture
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: no processes side by side")
def test_a_dry_run_sets_processes_beside_processes(tmp_path: Path) -> None:
    tiny = dry_run(tmp_path, "together,processes,one_by_one")["raw"]["tiny"]
    equal = tiny["one_by_one_processes"]["seconds"][0] / tiny["together_processes"]["seconds"][0]
    assert tiny["at_equal_processes"]["one_by_one_processes/together_processes"] == pytest.approx(equal)
    assert tiny["together_processes"]["settings"]["processes"] > 1


def test_the_plain_loop_has_our_loss_and_gradient_in_one_pass_or_two(benches: Any, ground: Any) -> None:
    cells = benches("fewshot_sides").Cells(ground.values)
    rival = benches("fewshot_rival")
    loop = rival.PeftLoop(Path(ground.values["backbone"]), cells.all())
    loss, grad = cells.first_step()
    for micro in (16, 8):
        choice = rival.Choice("float32", micro=micro)
        theirs, their_grad = loop.first_step(choice)
        assert theirs == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(their_grad, grad, rtol=1e-3, atol=1e-3 * np.abs(grad).max())


def test_both_prompts_train_and_end_alike(benches: Any, ground: Any) -> None:
    """The same draws, orders, AdamW, clipping and dev scores: dev losses agree to rounding all along."""
    sides, rival = benches("fewshot_sides"), benches("fewshot_rival")
    side = benches("pretrain_sides").Side(sides.Ours)
    ours = side.ask("run", values={**ground.values, "dtype": "float32"})["cells"]
    side.close()
    loop = rival.PeftLoop(Path(ground.values["backbone"]), sides.Cells(ground.values).all())
    theirs = loop.run(rival.Choice("float32"))["cells"]
    assert ours.keys() == theirs.keys() and len(ours) == 4
    for name, cell in ours.items():
        assert [point["step"] for point in cell["curve"]] == [0, 4]
        for own, other in zip(cell["curve"], theirs[name]["curve"], strict=True):
            assert other["dev_loss"] == pytest.approx(own["dev_loss"], rel=1e-3)
        assert cell["curve"][0]["dev_loss"] != cell["curve"][1]["dev_loss"]


def test_the_count_is_four_operations_a_weight_and_training_token_and_two_a_dev_token(
    benches: Any, ground: Any
) -> None:
    cells = benches("fewshot_sides").Cells(ground.values).all()
    train, dev = cells[0].lengths(4)
    assert len(train) == 4 * 16 and len(dev) == 2 * 32
    assert train[0] == len(cells[0].train[cells[0].order[0][0]]) + 4
    counted = benches("fewshot_data").count(ground.fields, train, dev)
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 128)  # layers x (attention's and feed-forward's matrices)
    assert counted.encoder == 4 * weights * train.sum() + 2 * weights * dev.sum()
    assert (
        counted.attention
        == 2 * 4 * (3 * (train.astype(float) ** 2).sum() + (dev.astype(float) ** 2).sum()) * 64
    )
    position = 2 * (
        6 * 64 * 64 + 2 * 64 * 128
    )  # layers x (four products of self-, two of cross-attention; feed-forward)
    head = 64 * 32_128  # at one of the two positions
    assert counted.decoder == (2 * 2 * position + 2 * head) * (2 * len(train) + len(dev))


def test_figures_say_how_far_anybody_could_come(benches: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = benches("fewshot_data")
    counted = data.Count(1, 1, 1, 1, encoder=50e9, attention=25e9, decoder=5e9)

    def rounds(*seconds: float) -> list[dict[str, Any]]:
        return [
            {"seconds": one, "tuning": one, "settings": {}, "cells": {"0 1": {"curve": [{"dev": 0.5}]}}}
            for one in seconds
        ]

    found = benches("fewshot_figures").figures(
        "tiny", {"cells": 2, "steps": 5}, counted,
        {"default": rounds(1.0, 2.0, 4.0), "one_by_one": rounds(2.0, 2.0, 12.0)}, [{"a": 50e9, "b": 100e9}] * 3,
    )  # fmt: skip
    assert found["best"] == "default" and found["ratios"] == {"one_by_one": 2.0}  # of 2, 1 and 3
    assert found["default"]["ceiling_share"] == 0.25  # 50 GFLOP in 2 s of 100 GFLOP/s
    assert found["most"]["one_by_one"] == pytest.approx(100 / 40)  # 80 GFLOP in 2 s
    assert "2.50 x as fast is what this machine allows" in capsys.readouterr().out
