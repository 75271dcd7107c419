"""Runs of many machines in one report: what counts once, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import UserError
from finetune.report import report

PROTOCOL = {"epochs": 50, "dtype": "float32"}


def made_row(method: str, seed: int, rate: float = 0.3, **changes: Any) -> dict[str, Any]:
    row = {
        "task": "sst2", "task_version": 1, "data_fingerprint": "d", "method": method, "seed": seed, "shots": 32,
        "learning_rate": rate, "dev": 0.75, "dev_loss": 0.5, "test": 0.5 + 0.01 * seed, "test_loss": 0.6, "chosen": True,
        "init": "feed" if method == "ppt" else "normal", "pattern": "{text} <X>", "hard_prompt": None,
        "verbalizer": ["bad", "good"], "protocol": PROTOCOL, "backbone_fingerprint": "f", "n_test": 200, **changes,
    }  # fmt: skip
    key = ("method", "seed", "learning_rate", "init", "pattern", "backbone_fingerprint")
    return {"cell": "-".join(str(row[name]) for name in key), **row}


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def merged(tmp_path: Path, one: list[dict[str, Any]], two: list[dict[str, Any]]) -> Any:
    return report([write_run(tmp_path / "one", one), write_run(tmp_path / "two", two)], tmp_path / "out")


def test_one_cell_with_two_results_is_a_warning_that_names_both_runs_and_the_first_counts(
    tmp_path: Path,
) -> None:
    rows = [made_row("ppt", seed) for seed in range(3)]
    made = merged(tmp_path, rows, [{**rows[0], "test": 0.48}, *rows[1:]])
    (warning,) = made.warnings
    assert str(tmp_path / "one") in warning and str(tmp_path / "two") in warning
    assert "ppt on sst2, seed 0, rate 0.3: test 50.0 and 48.0" in warning
    assert made.summary["tasks"]["sst2"]["ppt"]["scores"] == [0.5, 0.51, 0.52]


def test_many_conflicts_are_one_warning_with_their_number(tmp_path: Path) -> None:
    rows = [made_row("ppt", seed) for seed in range(5)]
    (warning,) = merged(tmp_path, rows, [{**row, "dev_loss": 0.7} for row in rows]).warnings
    assert "5 cells with different results" in warning and "and 2 more" in warning
    assert "dev_loss 0.5 and 0.7" in warning


def test_rounding_and_seconds_are_no_conflict(tmp_path: Path) -> None:
    rows = [made_row("ppt", seed) for seed in range(3)]
    other = [
        {**row, "dev_loss": 0.50001, "test_loss": 0.60002, "seconds": 7.0, "peak_bytes": 5} for row in rows
    ]
    assert merged(tmp_path, rows, other).warnings == []


def test_a_copy_that_was_scored_goes_before_one_that_was_not(tmp_path: Path) -> None:
    rows = [made_row("ppt", seed) for seed in range(2)]
    waiting = [{**row, "chosen": False, "test": None} for row in rows]
    assert merged(tmp_path, waiting, rows).summary["tasks"]["sst2"]["ppt"]["scores"] == [0.5, 0.51]


def test_a_grid_that_two_machines_shared_out_is_chosen_from_by_dev_and_not_by_test(tmp_path: Path) -> None:
    one = [made_row("ppt", seed, 0.1, dev=0.7, test=0.9) for seed in range(2)]
    two = [made_row("ppt", seed, 0.3, dev=0.8, test=0.6) for seed in range(2)]
    made = merged(tmp_path, one, two)
    assert made.summary["tasks"]["sst2"]["ppt"]["scores"] == [0.6, 0.6]
    assert "2 choices of a learning rate were made again by dev" in made.text
    chosen = (tmp_path / "out" / "report.csv").read_text(encoding="utf-8").splitlines()
    assert len(chosen) == 3 and all(str(tmp_path / "two") in line for line in chosen[1:])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"protocol": {**PROTOCOL, "dtype": "bfloat16"}}, "protocol.dtype"),
        ({"protocol": {**PROTOCOL, "calibrated": True}}, "protocol.calibrated"),
        ({"pattern": "<X> {text}"}, "pattern"),
        ({"hard_prompt": "It was <X>"}, "hard_prompt"),
        ({"verbalizer": ["poor", "fine"]}, "verbalizer"),
        ({"init": "beef"}, "init"),  # another pre-trained prompt: seeds of two starts in one mean
        ({"task_version": 2}, "task_version"),
        ({"data_fingerprint": "e"}, "data_fingerprint"),
        ({"n_test": 100}, "n_test"),
        ({"protocol": {**PROTOCOL, "epochs": 20}}, "protocol.epochs"),
        ({"protocol": {**PROTOCOL, "eval_every": 6}}, "protocol.eval_every"),
        ({"protocol": {**PROTOCOL, "dev_shots": 16}}, "protocol.dev_shots"),
        ({"max_tokens": 128}, "max_tokens"),  # the other one is of a release that does not say
        ({"shorten": ["text"]}, "shorten"),
        ({"tokenizer_fingerprint": "t"}, "tokenizer_fingerprint"),
    ],
)
def test_seeds_of_two_protocols_do_not_stand_in_one_mean(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(UserError) as caught:
        merged(tmp_path, [made_row("ppt", 0)], [made_row("ppt", 1, **change)])
    assert f'"{field}"' in str(caught.value) and str(tmp_path / "two") in str(caught.value)


def test_tasks_may_have_epochs_dev_scores_and_dev_examples_of_their_own_and_full_tuning_its_epochs(
    tmp_path: Path,
) -> None:
    own = {"protocol": {**PROTOCOL, "epochs": 20, "eval_every": 3, "dev_shots": 16}, "task": "cb"}
    ft = {"init": None, "protocol": {**PROTOCOL, "epochs": 10}}
    one = [made_row("ppt", seed) for seed in range(2)] + [made_row("ft", seed, **ft) for seed in range(2)]
    two = [made_row("ppt", seed, **own, cell=f"cb {seed}") for seed in range(2)]
    assert set(merged(tmp_path, one, two).summary["tasks"]) == {"sst2", "cb"}
    other = [made_row("vanilla_pt", 0, protocol=ft["protocol"])]
    with pytest.raises(UserError, match=r'"protocol.epochs" \(task sst2\): 50 and 10'):
        report([tmp_path / "one", write_run(tmp_path / "three", other)], tmp_path / "out")


def test_the_unified_pattern_may_be_longer_than_the_tasks_own_and_another_backbone_has_another_tokenizer(
    tmp_path: Path,
) -> None:
    same = {"shorten": []}
    one = [made_row("ppt", seed, max_tokens=128, tokenizer_fingerprint="t", **same) for seed in range(2)]
    unified = [made_row("unified_ppt", seed, init="cafe", max_tokens=384, **same) for seed in range(2)]
    two = [{**row, "backbone_fingerprint": "g", "tokenizer_fingerprint": "u"} for row in unified]
    assert len(merged(tmp_path, one, two).summary["tasks"]["sst2"]) == 2
    with pytest.raises(UserError, match='"max_tokens"'):
        other = [{**two[0], "method": "vanilla_pt", "init": "normal", "cell": "x"}]
        report([tmp_path / "one", write_run(tmp_path / "three", other)], tmp_path / "out")


def test_other_seeds_rates_numbers_of_examples_and_backbones_stand_together(tmp_path: Path) -> None:
    one = [made_row("ppt", seed) for seed in range(3)]
    two = [made_row("ppt", seed, 0.1) for seed in (3, 4)]
    two += [made_row("ppt", seed, shots=64, cell=f"64 {seed}") for seed in range(3)]
    two += [
        made_row("ppt", seed, backbone_fingerprint="g", backbone="other", init="cafe") for seed in range(3)
    ]
    made = merged(tmp_path, one, two)
    assert made.summary["tasks"]["sst2"]["ppt:f"]["scores"] == [0.5, 0.51, 0.52, 0.53, 0.54]
    assert len(made.summary["tasks"]["sst2"]["ppt:other"]["scores"]) == 3
