"""Tasks without data, sets that are too small, settings of single tasks: what runs, and that the report says what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import MachineError, UserError
from finetune.fewshot import run_fewshot
from finetune.plan import plan
from finetune.report import report
from finetune.workshop import Workshop


def rows_of(out: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def data(tmp_path: Path, task_files: dict[str, str]) -> Path:
    """A folder that holds the set `mood` and no other."""
    shutil.copytree(Path(task_files["mood"]).parent, tmp_path / "data" / "mood")
    return tmp_path / "data"


def test_tasks_without_data_are_left_out_and_named_by_run_and_report(
    small_run: Any, task_files: dict[str, str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {
        "tasks": [task_files["mood"], "rte", "amazon_zh"], "data": str(data), "methods": ["vanilla_pt"], "epochs": 1,
        "learning_rates": [0.3],
    }  # fmt: skip
    with pytest.raises(UserError, match=f"no data for task rte: looked for {data}/rte/train.jsonl"):
        run_fewshot(small_run(**changes))
    out = run_fewshot(small_run(**changes, skip_missing=True))
    assert {row["task"] for row in rows_of(out)} == {"mood"}
    said = capsys.readouterr().err
    assert f"task rte is left out: no file {data}/rte/train.jsonl, {data}/en/rte/train.jsonl" in said
    assert said.count("task rte is left out") == 1
    assert "the hub (nyu-mll/glue) cannot be reached" in said
    assert f"no file {data}/amazon_zh/train.jsonl" in said and "names no set on the hub" in said
    warnings = "\n".join(report([out], tmp_path / "report").warnings)
    assert f"rte was left out: no file {data}/rte/train.jsonl" in warnings
    assert "amazon_zh was left out" in warnings and "mood was" not in warnings


def test_without_any_data_or_with_wrong_data_nothing_is_skipped(small_run: Any, data: Path) -> None:
    with pytest.raises(UserError, match="none of the tasks rte has data"):
        plan(Workshop(small_run(tasks=["rte"], data=str(data), skip_missing=True)))
    (data / "rte").mkdir()
    for name in ("train", "validation"):
        (data / "rte" / f"{name}.jsonl").write_text('{"text_a": "a", "text_b": "b", "label": "perhaps"}\n')
    with pytest.raises(UserError, match=r'train.jsonl line 1: field "label" is "perhaps"'):
        plan(Workshop(small_run(tasks=["rte"], data=str(data), skip_missing=True)))
    with pytest.raises(MachineError, match="the hub cannot be reached"):
        plan(Workshop(small_run(tasks=["cb"], data=None)))


def test_a_set_too_small_for_what_was_asked_goes_as_far_as_it_can_and_the_report_says_so(
    small_run: Any, tmp_path: Path
) -> None:
    out = run_fewshot(
        small_run(
            methods=["vanilla_pt"],
            seeds=[0],
            learning_rates=[0.3],
            epochs=1,
            shots=[8, 100],
            allow_fewer=True,
        )
    )
    assert [(row["n_train"], row["n_dev"]) for row in rows_of(out)] == [(8, 12), (48, 12)]
    warnings = report([out], tmp_path / "report").warnings
    (line,) = (line for line in warnings if "asked for" in line)
    assert line.startswith("mood has 48 examples to train on, 100 were asked for: its set has no more")


def test_shots_all_takes_every_row_that_dev_leaves(
    small_run: Any, task_files: dict[str, str], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "methods": ["vanilla_pt"],
        "learning_rates": [0.3],
        "epochs": 1,
        "shots": "all",
    }
    keys = [key for choice in plan(Workshop(small_run(**changes))) for key in choice.keys]
    assert {(key["n_train"], key["n_dev"]) for key in keys} == {(48, 12)}
    made = report([run_fewshot(small_run(**changes))], tmp_path / "report")
    assert "Missing cells" not in made.text and not any("asked for" in line for line in made.warnings)
    out = run_fewshot(small_run(**changes, dev_shots=100, out=str(tmp_path / "halved")))
    assert {(row["n_train"], row["n_dev"]) for row in rows_of(out)} == {(30, 30)}
    (line,) = (line for line in report([out], tmp_path / "report").warnings if "asked for" in line)
    assert line.startswith("mood has 30 examples to choose by, 100 were asked for")
    workshop = Workshop(small_run(**changes, tasks=[task_files["ten"]]))
    keys = [key for choice in plan(workshop) for key in choice.keys]
    assert {(key["n_train"], key["n_dev"]) for key in keys} == {(60, 20)}  # 80 rows, 2 a label to choose by
    drawn = workshop.draw(task_files["ten"], workshop.settings.all_shots[0], 0)
    assert sorted([*drawn.train, *drawn.dev]) == list(range(80))


def test_a_task_may_have_epochs_and_dev_steps_of_its_own(small_run: Any, task_files: dict[str, str]) -> None:
    settings = small_run(
        tasks=[task_files["mood"], task_files["pair"]],
        methods=["ft", "vanilla_pt"],
        seeds=[0],
        learning_rates=[0.3],
        of_task={"mood": {"epochs": 4, "ft_epochs": 2, "eval_every": 3, "dev_shots": 6}},
    )
    out = run_fewshot(settings)
    rows = {(row["task"], row["method"]): row for row in rows_of(out)}
    steps = {place: row["steps"] for place, row in rows.items()}
    assert steps == {
        ("mood", "ft"): 4,
        ("mood", "vanilla_pt"): 8,
        ("pair", "ft"): 6,
        ("pair", "vanilla_pt"): 6,
    }
    assert {(place[0], row["n_dev"]) for place, row in rows.items()} == {("mood", 6), ("pair", 12)}

    def scored_at(place: tuple[str, str]) -> list[int]:
        text = (out / "curves" / f"{rows[place]['cell']}.jsonl").read_text()
        return [json.loads(line)["step"] for line in text.splitlines()]

    assert scored_at(("mood", "vanilla_pt")) == [0, 3, 6, 8] and scored_at(("pair", "vanilla_pt")) == [
        0,
        2,
        4,
        6,
    ]
    assert scored_at(("mood", "ft")) == [0, 3, 4]


def test_settings_of_a_task_that_there_is_not_name_the_nearest(small_run: Any, data: Path) -> None:
    with pytest.raises(UserError, match='of_task names the task "mod"; did you mean "mood"'):
        plan(Workshop(small_run(of_task={"mod": {"epochs": 2}})))
    with pytest.raises(UserError, match='data names the task "mod"; did you mean "mood"'):
        run_fewshot(small_run(data={"mod": str(data / "mood")}))
    assert plan(Workshop(small_run(data={"mood": str(data / "mood"), "cb": "elsewhere"})))


def test_each_start_of_random_prompts_is_a_line_of_its_own(small_run: Any, tmp_path: Path) -> None:
    settings = small_run(
        methods=["ft", "vanilla_pt", "ppt"], init=["normal", "vocabulary", "label_words"], epochs=1,
        learning_rates=[0.3],
    )  # fmt: skip
    out = run_fewshot(settings)
    rows = [row for row in rows_of(out) if row["seed"] == 0]
    starts = sorted(row["init"] for row in rows if row["method"] == "vanilla_pt")
    assert starts == ["label_words", "normal", "vocabulary"]
    assert (
        len(rows) == 5 and len({row["cell"] for row in rows}) == 5
    )  # FT and PPT start from no random prompt
    assert len({row["prompt"] for row in rows if row["method"] == "vanilla_pt"}) == 3
    made = report([out], tmp_path / "report")
    assert made.table is not None
    labels = {line[0].text for line in made.table.body}
    assert {
        "Vanilla PT (normal)",
        "Vanilla PT (vocabulary)",
        "Vanilla PT (label words)",
        "FT",
        "PPT",
    } == labels


def test_cells_of_a_start_or_wording_that_a_run_lacks_are_missing_and_no_other(
    small_run: Any, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"methods": ["vanilla_pt", "ppt"], "epochs": 1, "learning_rates": [0.3]}
    out = run_fewshot(small_run(**changes, init=["normal", "label_words"]))
    assert "Missing cells" not in report([out], tmp_path / "whole").text
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(line for line in lines if '"init": "label_words"' not in line))
    text = report([out], tmp_path / "part").text
    assert "vanilla_pt (label_words)" in text and "2 cells" in text
