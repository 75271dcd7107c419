"""The demo: its settings are sound and its smallest form runs from text to report."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.common.files import read_json
from corpora.common.settings import make_settings, read_yaml
from finetune.settings import FewshotSettings
from launch.pocket import demo
from launch.pocket.tasks import ALL_TASKS, DEMO_TASKS


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
