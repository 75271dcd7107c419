"""The demo: its settings are sound and its smallest form runs from text to report."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from corpora.common.files import read_json
from corpora.common.settings import make_settings, read_yaml
from finetune.settings import FewshotSettings
from launch.pocket import choose_rates, demo
from launch.pocket.tasks import ALL_TASKS, DEMO_TASKS
from launch.pocket.world import side_of


@pytest.mark.parametrize("full", [False, True])
def test_the_demo_runs_all_methods_with_five_seeds(tmp_path: Path, full: bool) -> None:
    config = read_yaml(demo.CONFIG)
    values = {**config["fewshot"], **(config["full"] if full else {})}
    tasks = ALL_TASKS if full else DEMO_TASKS
    settings = make_settings(FewshotSettings, demo.fewshot_values(tmp_path, values, tasks), "demo.yaml")
    assert settings.methods == demo.METHODS and len(settings.seeds) == 5
    assert all(len(settings.rates(method)) == (4 if full else 1) for method in demo.METHODS)
    assert config["fewshot"]["prompt_len"] == config["pretrain"]["prompt_len"]


def test_a_tiny_demo_goes_from_the_world_to_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_yaml(demo.CONFIG)
    config["world"] |= {"documents": 60, "reviews": 400, "train": 200, "test": 10}
    config["pretrain"] |= {"steps": 2, "eval_every": 2, "eval_examples": 4, "batch_size": 2, "processes": 1}
    config["fewshot"] |= {
        "seeds": [0, 1],
        "epochs": 1,
        "processes": 1,
        "methods": ["vanilla_pt", "ppt"],
        "max_test": 10,
    }
    config["full"] |= {"epochs": 1, "learning_rates": [0.3, 1.0], "max_test": 10}
    monkeypatch.setattr(demo, "read_yaml", lambda path: config)
    monkeypatch.setattr(demo, "DEMO_TASKS", ("link", "verdict"))
    demo.run_demo(tmp_path)
    summary = read_json(tmp_path / "summary.json")
    assert set(summary["seconds"]) == {"world", "corpora", "pretrain", "fewshot", "report"}
    for task in ("link", "verdict"):
        for method in ("vanilla_pt", "ppt"):
            assert len(summary["tasks"][task][method]["scores"]) == 2
    assert set(summary["methods"]) == {"vanilla_pt", "ppt"}
    assert (tmp_path / "report.html").exists()
    table = demo.main_table((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert "Vanilla PT" in table and "PPT" in table and "Settings" not in table
    rows = (tmp_path / "fewshot" / "results.jsonl").read_bytes()
    demo.run_demo(tmp_path, full=True)  # goes on from the same prompts, with every set and the grid
    assert set(read_json(tmp_path / "summary.json")["tasks"]) == set(ALL_TASKS)
    assert (tmp_path / "fewshot" / "results.jsonl").read_bytes() == rows
    assert "whole grid" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_rates_are_compared_by_dev_scores_on_the_trial_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_yaml(demo.CONFIG)
    config["world"] |= {"documents": 60, "reviews": 400, "train": 200, "test": 10}
    config["pretrain"] |= {"steps": 2, "eval_every": 2, "eval_examples": 4, "batch_size": 2, "processes": 1}
    config["fewshot"] |= {"epochs": 1, "processes": 1}
    monkeypatch.setattr(choose_rates, "read_yaml", lambda path: config)
    monkeypatch.setattr(choose_rates, "METHODS", ("vanilla_pt", "ppt"))
    monkeypatch.setattr(choose_rates, "DEMO_TASKS", ("link",))
    means = choose_rates.choose(tmp_path)
    assert {method: list(rates) for method, rates in means.items()} == {
        "vanilla_pt": [0.3, 1.0],
        "ppt": [0.3, 1.0],
    }
    rows = [json.loads(line) for line in (tmp_path / "fewshot" / "results.jsonl").read_text().splitlines()]
    own = [row for row in rows if (row["method"], row["learning_rate"]) == ("ppt", 1.0)]
    assert means["ppt"][1.0] == (mean(row["dev"] for row in own), mean(row["dev_loss"] for row in own))
    texts = [json.loads(line)["one"] for line in (tmp_path / "world/data/link/train.jsonl").open()]
    assert {side_of(text) for text in texts} == {"trial"}
