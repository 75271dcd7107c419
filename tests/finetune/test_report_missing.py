"""What is missing is listed cell by cell, and the commands run exactly that."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.common.settings import load_settings
from finetune.report import report
from finetune.report_asked import asked_cells
from finetune.report_missing import block_command, blocks_of, missing_cells
from finetune.report_read import Run, read_run
from finetune.settings import FewshotSettings

if TYPE_CHECKING:
    from finetune.report_asked import Asked

CONFIG: dict[str, Any] = {
    "out": "runs/made",
    "backbone": "base",
    "tasks": ["sst2", "cb"],
    "methods": ["ft", "vanilla_pt", "ppt"],
    "seeds": [0, 1],
    "shots": 32,
    "learning_rates": [0.1, 0.3],
    "ft_learning_rates": [1e-5],
}


def row_of(cell: Asked, **changes: Any) -> dict[str, Any]:
    """The row of an asked cell; the larger rate is the better one by dev."""
    init = {"": None, "pretrained": "feed"}.get(cell.start, cell.start)
    rate = cell.rate
    best = rate == (0.3 if cell.method != "ft" else 1e-5)
    row = {
        "cell": "-".join(map(str, (cell.task, cell.method, cell.seed, rate, cell.shots))),
        "task": cell.task, "method": cell.method, "seed": cell.seed, "shots": cell.shots, "learning_rate": rate,
        "init": init, "dev": 0.8 if best else 0.7, "dev_loss": 0.5, "chosen": best, "backbone": "base",
        "backbone_fingerprint": "f", "n_train": cell.shots, "n_dev": 32,
    }  # fmt: skip
    return {**row, **({"test": 0.6} if best else {}), **changes}


def write_run(folder: Path, rows: list[dict[str, Any]], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "out": str(folder)}, sort_keys=False))
    return folder


def whole_rows(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [row_of(cell) for cell in asked_cells(Run(Path("run"), [], config, {}, []), [])]


def commands_of(text: str) -> list[list[str]]:
    section = text.split("## Missing cells")[1].split("\n## ")[0]
    return [shlex.split(line) for line in section.splitlines() if line.startswith("ppt fewshot")]


def test_every_cell_of_the_settings_is_asked_for_once() -> None:
    rows = whole_rows(CONFIG)
    assert len(rows) == len({row["cell"] for row in rows}) == 2 * 2 * (1 + 2 + 2)


def test_a_whole_run_misses_nothing_and_says_nothing(tmp_path: Path) -> None:
    made = report([write_run(tmp_path / "run", whole_rows(CONFIG), CONFIG)], tmp_path / "out")
    assert "Missing cells" not in made.text and made.warnings == []  # of two rates each is an end


def test_what_a_run_lacks_is_listed_and_its_own_command_goes_on(tmp_path: Path) -> None:
    rows = [
        row for row in whole_rows(CONFIG) if (row["task"], row["method"], row["seed"]) != ("cb", "ppt", 1)
    ]
    rows = [row for row in rows if (row["task"], row["method"]) != ("sst2", "ft")]
    run = write_run(tmp_path / "run", rows, CONFIG)
    made = report([run], tmp_path / "out")
    section = made.text.split("## Missing cells")[1].split("##")[0]
    lines = [[entry.strip() for entry in line.strip("|").split("|")] for line in section.splitlines() if line.startswith(f"| {run}")]  # fmt: skip
    assert lines == [
        [str(run), "sst2", "ft", "32", "0, 1", "all", "2 cells"],
        [str(run), "cb", "ppt", "32", "1", "all", "2 cells"],
    ]
    assert commands_of(made.text) == [["ppt", "fewshot", str(run / "config.yaml"), f"out={run}"]]
    assert any("4 of the cells that the runs ask for have no row" in warning for warning in made.warnings)


def test_a_cell_that_another_machine_has_is_not_missing(tmp_path: Path) -> None:
    rows = whole_rows(CONFIG)
    one = write_run(tmp_path / "one", [row for row in rows if row["seed"] == 0], CONFIG)
    two = write_run(
        tmp_path / "two", [row for row in rows if row["seed"] == 1 and row["method"] != "ft"], CONFIG
    )
    made = report([one, two], tmp_path / "out")
    assert commands_of(made.text) == [
        ["ppt", "fewshot", str(one / "config.yaml"), "tasks=[sst2, cb]", "methods=[ft]", "seeds=[1]", "out=runs/missing"]
    ]  # fmt: skip
    assert made.text.count("2 cells") == 1  # both runs ask for them; they are listed once


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_commands_of_any_missing_cells_ask_for_these_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    config = {**CONFIG, "shots": [32, 64], "learning_rates_of": {"ppt": [0.1, 0.3, 1.0]}}
    rows = whole_rows(config)
    gone = data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))
    folder = tmp_path_factory.mktemp("missing")
    run = read_run(write_run(folder / "run", [row for i, row in enumerate(rows) if i not in gone], config))
    ((_, cells),) = missing_cells([run], run.rows)
    asked: list[tuple[Any, ...]] = []
    for block in blocks_of(cells, run.config):
        words = shlex.split(block_command(block, run))
        narrow = load_settings(FewshotSettings, words[2], words[3:]).model_dump(mode="json")
        again = asked_cells(Run(folder, [], narrow, {}, []), [])
        assert len(again) == block.cells
        asked += [(cell.task, cell.method, cell.seed, cell.rate, cell.shots) for cell in again]
    expected = [rows[i] for i in gone]
    assert len(asked) == len(set(asked))
    assert set(asked) == {
        (row["task"], row["method"], row["seed"], row["learning_rate"], row["shots"]) for row in expected
    }


def test_a_choice_that_was_not_scored_is_listed(tmp_path: Path) -> None:
    rows = whole_rows(CONFIG)
    for row in rows:
        if (row["task"], row["method"], row["seed"]) == ("sst2", "ppt", 1):
            row.update(chosen=False, test=None)
    run = write_run(tmp_path / "run", rows, CONFIG)
    made = report([run], tmp_path / "out")
    assert "the test score" in made.text and commands_of(made.text)[0][-1] == f"out={run}"
    assert any("1 choice of a rate has no test score" in warning for warning in made.warnings)


def test_a_set_with_fewer_examples_than_asked_for_is_whole_and_told(tmp_path: Path) -> None:
    config = {**CONFIG, "tasks": ["cb"], "shots": [128, 256], "allow_fewer": True, "dev_shots": 40}
    rows = []
    for row in whole_rows({**config, "shots": [128, 218]}):
        rows.append({**row, "n_dev": 32})
    made = report([write_run(tmp_path / "run", rows, config)], tmp_path / "out")
    assert "Missing cells" not in made.text
    assert any("cb has 218 examples to train on, 256 were asked for" in warning for warning in made.warnings)
    assert any("cb has 32 examples to choose by, 40 were asked for" in warning for warning in made.warnings)


def test_a_task_of_many_labels_counts_examples_by_label_and_does_not_run_what_ppt_fills(
    tmp_path: Path,
) -> None:
    config = {**CONFIG, "tasks": ["yahoo_answers"], "methods": ["ppt", "unified_ppt"], "shots_per_label": 8}
    cells = asked_cells(Run(tmp_path, [], config, {}, []), [])
    assert {(cell.method, cell.shots) for cell in cells} == {("ppt", 80)}


def test_rows_of_another_start_or_backbone_are_no_substitute(tmp_path: Path) -> None:
    config = {**CONFIG, "methods": ["vanilla_pt"], "init": "vocabulary"}
    normal = [{**row, "init": "normal"} for row in whole_rows(config)]
    one = write_run(tmp_path / "one", normal, {**config, "init": "normal"})
    two = write_run(tmp_path / "two", whole_rows(config)[:1], config)
    found = missing_cells([read_run(one), read_run(two)], read_run(one).rows + read_run(two).rows)
    ((run, cells),) = found
    assert run.folder == two and len(cells) == len(normal) - 1


def test_settings_that_do_not_name_every_cell_are_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path, [], {"tasks": ["sst2"]}, {}, [])
    assert asked_cells(run, []) == [] and missing_cells([run], []) == []


def test_the_command_of_a_real_run_brings_the_missing_rows(
    tmp_path: Path, small_run: Callable[..., FewshotSettings]
) -> None:
    from finetune.fewshot import run_fewshot

    run = run_fewshot(
        small_run(methods=["vanilla_pt", "hybrid_pt"], seeds=[0, 1], learning_rates=[0.3], epochs=1)
    )
    whole = (run / "results.jsonl").read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    (run / "results.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    made = report([run], tmp_path / "out")
    assert any("1 of the cells that the runs ask for has no row" in warning for warning in made.warnings)
    ((_, _, config, *overrides),) = commands_of(made.text)
    run_fewshot(load_settings(FewshotSettings, config, overrides))
    again = [json.loads(line) for line in (run / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["cell"] for row in again} == {json.loads(line)["cell"] for line in lines}
    assert "Missing cells" not in report([run], tmp_path / "again").text


def test_what_an_earlier_command_asked_for_is_missing_with_its_own_command(
    tmp_path: Path, small_run: Callable[..., FewshotSettings]
) -> None:
    from finetune.fewshot import run_fewshot

    common: dict[str, Any] = {"methods": ["vanilla_pt"], "learning_rates": [0.3], "epochs": 1}
    run = run_fewshot(small_run(seeds=[0, 1], **common))
    first = (run / "config.yaml").read_text(encoding="utf-8")
    run_fewshot(small_run(seeds=[0, 1], **common))
    assert not (run / "earlier").exists()  # the same settings are no earlier ones
    run_fewshot(small_run(seeds=[5], **common))
    (earlier,) = (run / "earlier").iterdir()
    assert earlier.read_text(encoding="utf-8") == first
    assert "Missing cells" not in report([run], tmp_path / "whole").text

    lines = (run / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "results.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["seed"] != 1), encoding="utf-8"
    )
    made = report([run], tmp_path / "out")
    assert commands_of(made.text) == [["ppt", "fewshot", str(earlier), f"out={run}"]]
    assert any("1 of the cells that the runs ask for has no row" in warning for warning in made.warnings)
    again = made.text.split("## Commands that make each number again")[1]
    assert f"ppt fewshot {earlier} " in again and f"ppt fewshot {run}/config.yaml " in again

    run_fewshot(load_settings(FewshotSettings, earlier, [f"out={run}"]))
    after = report([run], tmp_path / "again")
    assert "Missing cells" not in after.text
    assert {json.loads(line)["seed"] for line in (run / "results.jsonl").read_text().splitlines()} == {
        0,
        1,
        5,
    }


def test_what_two_commands_asked_for_is_listed_once_and_run_once(tmp_path: Path) -> None:
    rows = [row for row in whole_rows(CONFIG) if row["seed"] == 0]
    run = write_run(tmp_path / "run", rows, CONFIG)
    (run / "earlier").mkdir()
    (run / "earlier" / "a.yaml").write_text(yaml.safe_dump({**CONFIG, "seeds": [1, 2]}), encoding="utf-8")
    made = report([run], tmp_path / "out")
    assert commands_of(made.text) == [
        ["ppt", "fewshot", str(run / "config.yaml"), f"out={run}"],
        ["ppt", "fewshot", str(run / "earlier" / "a.yaml"), f"out={run}"],
    ]
    assert any("20 of the cells" in warning for warning in made.warnings)  # seeds 1 and 2
    found = missing_cells([read_run(run)], read_run(run).rows)
    assert [(asking.config_name, {cell.seed for cell in cells}) for asking, cells in found] == [
        ("config.yaml", {1}),
        ("earlier/a.yaml", {2}),
    ]


def test_a_set_that_is_too_small_is_told_after_a_command_that_asked_for_less(tmp_path: Path) -> None:
    config = {**CONFIG, "tasks": ["cb"], "shots": 256, "allow_fewer": True}
    run = write_run(tmp_path / "run", whole_rows({**config, "shots": 218}), {**config, "shots": 32})
    (run / "earlier").mkdir()
    (run / "earlier" / "a.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    warnings = report([run], tmp_path / "out").warnings
    assert any("cb has 218 examples to train on, 256 were asked for" in warning for warning in warnings)


def test_tasks_that_an_earlier_command_had_no_data_of_are_still_known(
    tmp_path: Path, small_run: Callable[..., FewshotSettings], task_files: dict[str, str]
) -> None:
    from finetune.fewshot import run_fewshot

    gone = tmp_path / "gone.yaml"
    gone.write_text(Path(task_files["mood"]).read_text(encoding="utf-8") + "name: gone\n", encoding="utf-8")
    common: dict[str, Any] = {"methods": ["vanilla_pt"], "learning_rates": [0.3], "epochs": 1, "seeds": [0]}
    both = [task_files["mood"], str(gone)]
    run = run_fewshot(small_run(tasks=both, skip_missing=True, **common))
    run_fewshot(small_run(tasks=both[:1], **common))
    made = report([run], tmp_path / "out")
    assert any("gone was left out" in warning for warning in made.warnings)
    assert "Missing cells" not in made.text
