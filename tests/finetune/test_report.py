"""The report's numbers against numpy, its refusals, and that its page needs nothing else."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from corpora.common.errors import UserError
from finetune.report import report, summarise
from finetune.report_read import read_run

PROTOCOL = {"epochs": 50, "batch_size": 16, "dev_shots": 32}
SEEDS = (0, 1, 2, 3, 4)


def made_row(task: str, method: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A chosen row whose score is drawn from the row's own name."""
    score = float(np.random.default_rng([seed, len(task), len(method)]).uniform(0.4, 0.95))
    row = {
        "task": task,
        "task_version": 1,
        "data_fingerprint": f"data of {task}",
        "backbone_fingerprint": "f" * 64,
        "method": method,
        "init": {"ft": None, "ppt": "0123abcd", "unified_ppt": "0123abcd"}.get(method, "normal"),
        "hard_prompt": None,
        "verbalizer": ["no", "yes"],
        "shots": 32,
        "seed": seed,
        "learning_rate": 0.3,
        "protocol": PROTOCOL,
        "dev": score,
        "dev_loss": 1 - score,
        "step": 60,
        "steps": 100,
        "seconds": 1.5,
        "n_train": 32,
        "n_dev": 32,
        "n_test": 200,
        "prompt": "abcd",
        "chosen": True,
        "test": score,
        "test_vocabulary": score - 0.1,
        **changes,
    }
    name = [
        row[key]
        for key in ("task", "method", "seed", "shots", "learning_rate", "init", "backbone_fingerprint")
    ]
    return {"cell": "-".join(map(str, name)), **row}


def made_rows(
    tasks: tuple[str, ...] = ("sst2", "cb"), methods: tuple[str, ...] = ("vanilla_pt", "ppt")
) -> list[dict[str, Any]]:
    rows = [made_row(task, method, seed) for task in tasks for method in methods for seed in SEEDS]
    for row in rows:
        if row["task"] == "cb":
            row["test_f1"] = row["test"] / 2
    return rows


def write_run(folder: Path, rows: list[dict[str, Any]], **config: Any) -> Path:
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    settings = {"out": "runs/made", "tasks": sorted({row["task"] for row in rows}), **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def main_table(text: str) -> dict[str, dict[str, str]]:
    """The report's first table of methods: line -> column -> entry."""
    lines = iter(text.splitlines())
    head = next(line for line in lines if line.startswith("| method"))
    names = [name.strip() for name in head.strip("|").split("|")]
    next(lines)
    table = {}
    for line in lines:
        if not line.startswith("|"):
            break
        entries = [entry.strip().strip("*") for entry in line.strip("|").split("|")]
        table[entries[0]] = dict(zip(names[1:], entries[1:], strict=True))
    return table


def scores_of(rows: list[dict[str, Any]], task: str, method: str, field: str = "test") -> np.ndarray:
    return np.array([row[field] for row in rows if row["task"] == task and row["method"] == method])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path, list[dict[str, Any]]]]:
    """One report over everything that a report may hold."""
    folder = tmp_path_factory.mktemp("report")
    rows = made_rows()
    for task, n in (("cb", 64), ("cb", 128)):
        rows += [made_row(task, method, seed, shots=n) for method in ("vanilla_pt", "ppt") for seed in SEEDS]
    rows += [made_row("sst2", "ppt", seed, learning_rate=0.1, chosen=False, dev=0.1) for seed in SEEDS]
    run = write_run(folder / "run", rows)
    (run / "curves").mkdir()
    for row in rows:
        points = [
            {"step": step, "train_loss": 1 / (1 + step), "dev": 0.5, "dev_loss": 0.7} for step in (0, 6, 12)
        ]
        (run / "curves" / f"{row['cell']}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points))
    pretraining = folder / "pretraining"
    pretraining.mkdir()
    points = [
        {"step": step, "format": name, "split": split, "loss": 1.0, "accuracy": 0.4}
        for step in (0, 10)
        for name in ("sentence_pair", "unified")
        for split in ("train", "validation")
    ]
    (pretraining / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    yield report([run, pretraining], folder / "out", notes=["A remark."]), folder / "out", rows


def test_mean_and_deviation_are_numpys_with_ddof_1(made: tuple[Any, Path, list[dict[str, Any]]]) -> None:
    result, _, rows = made
    table = main_table(result.text)
    for task in ("sst2", "cb"):
        for method, label in (("vanilla_pt", "Vanilla PT"), ("ppt", "PPT")):
            scores = 100 * np.array([r["test"] for r in rows if (r["task"], r["method"], r["shots"]) == (task, method, 32) and r["chosen"]])  # fmt: skip
            assert len(scores) == 5
            assert table[label][task] == f"{scores.mean():.1f} ± {scores.std(ddof=1):.1f}"


def test_macro_f1_stands_beside_its_task_and_outside_the_average(
    made: tuple[Any, Path, list[dict[str, Any]]],
) -> None:
    result, _, _ = made
    rows = made_rows()
    entry = main_table(result.text)["PPT"]
    f1 = 100 * scores_of(rows, "cb", "ppt", "test_f1")
    assert entry["cb F1"] == f"{f1.mean():.1f} ± {f1.std(ddof=1):.1f}"
    means = [100 * scores_of(rows, task, "ppt").mean() for task in ("sst2", "cb")]
    deviations = [100 * scores_of(rows, task, "ppt").std(ddof=1) for task in ("sst2", "cb")]
    assert entry["average"] == f"{np.mean(means):.1f} ± {np.mean(deviations):.1f}"


def test_summary_has_scores_in_seed_order_and_averages_over_tasks() -> None:
    rows = made_rows()
    summary = summarise(rows[::-1])
    scores = scores_of(rows, "cb", "ppt")
    assert summary["tasks"]["cb"]["ppt"]["scores"] == list(scores)
    assert summary["tasks"]["cb"]["ppt"]["std"] == pytest.approx(scores.std(ddof=1))
    assert summary["tasks"]["cb"]["ppt"]["f1"]["mean"] == pytest.approx(scores.mean() / 2)
    assert "f1" not in summary["tasks"]["sst2"]["ppt"]
    means = [scores_of(rows, task, "ppt").mean() for task in ("sst2", "cb")]
    deviations = [scores_of(rows, task, "ppt").std(ddof=1) for task in ("sst2", "cb")]
    assert summary["methods"]["ppt"] == {
        "mean": pytest.approx(np.mean(means)),
        "std": pytest.approx(np.mean(deviations)),
        "tasks": 2,
    }


def test_one_seed_has_no_deviation() -> None:
    summary = summarise([made_row("sst2", "ppt", 0)])
    assert summary["tasks"]["sst2"]["ppt"]["std"] is None
    assert summary["methods"]["ppt"]["std"] is None


@pytest.mark.defect(4)
def test_only_chosen_rows_count_and_every_seed_is_listed(
    made: tuple[Any, Path, list[dict[str, Any]]],
) -> None:
    result, out, rows = made
    with open(out / "report.csv", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert {row["cell"] for row in listed} == {row["cell"] for row in rows if row["chosen"]}
    seeds = result.text.split("## All seeds")[1].split("##")[0]
    line = next(line for line in seeds.splitlines() if re.match(r"\| Vanilla PT +\| +sst2", line))
    shown = [entry.strip() for entry in line.strip("|").split("|")][3:8]
    assert shown == [f"{100 * score:.1f}" for score in scores_of(rows, "sst2", "vanilla_pt")]


def test_a_missing_cell_is_shown_and_spoils_only_its_average(tmp_path: Path) -> None:
    rows = [row for row in made_rows() if (row["task"], row["method"]) != ("cb", "ppt")]
    rows = [row for row in rows if (row["task"], row["method"], row["seed"]) != ("sst2", "vanilla_pt", 4)]
    result = report([write_run(tmp_path / "run", rows)], tmp_path / "out")
    table = main_table(result.text)
    assert table["PPT"]["cb"] == "missing"
    assert table["PPT"]["average"] == "1 missing"
    assert table["Vanilla PT"]["sst2"].endswith("(4 of 5 seeds)")
    assert table["Vanilla PT"]["average"].endswith("(seeds missing)")
    assert any("PPT has no result on cb" in warning for warning in result.warnings)
    assert any("Vanilla PT lacks seeds on sst2" in warning for warning in result.warnings)


def test_a_run_that_fills_another_row_is_marked_there(tmp_path: Path) -> None:
    rows = made_rows(("topics",), ("vanilla_pt",))
    rows += [made_row("topics", "ppt", seed, fills=["unified_ppt"]) for seed in SEEDS]
    result = report([write_run(tmp_path / "run", rows)], tmp_path / "out")
    table = main_table(result.text)
    assert table["Unified PPT"]["topics"] == table["PPT"]["topics"] + " †"
    assert result.summary["tasks"]["topics"]["unified_ppt"] == result.summary["tasks"]["topics"]["ppt"]
    content = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    filled = {entry["method"]: entry["filled_from"] for entry in content["table"]}
    assert filled == {"vanilla_pt": None, "ppt": None, "unified_ppt": "ppt"}


def test_page_is_one_file_without_addresses_or_scripts(made: tuple[Any, Path, list[dict[str, Any]]]) -> None:
    _, out, _ = made
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "http" not in page and "<script" not in page and "<link" not in page
    assert (
        page.count("<svg") == 7
    )  # bars, comparisons, sample efficiency, three training curves, pre-training
    assert not re.search(r"<img|@import|url\((?!#)|src=", page)
    identifiers = re.findall(r'id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert used <= set(identifiers)


def test_pictures_lie_beside_the_report_and_the_markdown_names_them(
    made: tuple[Any, Path, list[dict[str, Any]]],
) -> None:
    result, out, _ = made
    named = set(re.findall(r"\]\((\w+\.png)\)", result.text))
    assert named == {path.name for path in out.glob("*.png")}
    assert {"bars.png", "efficiency.png", "curves_dev.png", "pretraining.png"} <= named
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made_rows())
    for name in ("one", "two"):
        report([run], tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"protocol": {**PROTOCOL, "epochs": 20}}, "protocol.epochs"),
        ({"task_version": 2}, "task_version"),
        ({"data_fingerprint": "other"}, "data_fingerprint"),
        ({"n_test": 100}, "n_test"),
    ],
)
def test_runs_of_two_protocols_are_refused_naming_the_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    one = write_run(tmp_path / "one", made_rows(methods=("vanilla_pt",)))
    two = write_run(tmp_path / "two", [{**row, **change} for row in made_rows(methods=("ppt",))])
    with pytest.raises(UserError) as caught:
        report([one, two], tmp_path / "out")
    assert (
        f'"{field}"' in str(caught.value) and str(one) in str(caught.value) and str(two) in str(caught.value)
    )
    assert not (tmp_path / "out").exists()


def test_two_verbalizers_of_one_method_are_refused_but_methods_may_differ(tmp_path: Path) -> None:
    letters = [{**row, "verbalizer": ["A", "B"]} for row in made_rows(methods=("unified_ppt",))]
    report([write_run(tmp_path / "one", made_rows() + letters)], tmp_path / "out")
    other = [{**row, "verbalizer": ["bad", "good"], "cell": row["cell"] + "x"} for row in made_rows()]
    with pytest.raises(UserError, match="verbalizer"):
        report([tmp_path / "one", write_run(tmp_path / "two", other)], tmp_path / "out")


def test_two_rows_of_one_place_are_refused_naming_both_runs(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", made_rows(methods=("ppt",)))
    rows = [{**row, "cell": f"other {row['cell']}"} for row in made_rows(methods=("ppt",))]
    with pytest.raises(UserError, match=r"one and .*two both hold PPT on sst2.*differ in their results"):
        report([one, write_run(tmp_path / "two", rows)], tmp_path / "out")


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made_rows())
    assert report([run, run], tmp_path / "out").summary == summarise(made_rows())


def test_starts_and_backbones_of_one_method_are_lines_of_their_own(tmp_path: Path) -> None:
    rows = made_rows(("sst2",), ("vanilla_pt",))
    rows += [made_row("sst2", "vanilla_pt", seed, init="vocabulary") for seed in SEEDS]
    rows += [
        made_row("sst2", "ft", seed, backbone=name, backbone_fingerprint=name)
        for name in ("t5-small", "t5-base")
        for seed in SEEDS
    ]
    result = report([write_run(tmp_path / "run", rows)], tmp_path / "out")
    assert set(main_table(result.text)) == {"FT (t5-base)", "FT (t5-small)", "Vanilla PT (normal)", "Vanilla PT (vocabulary)"}  # fmt: skip
    assert "vanilla_pt:vocabulary" in result.summary["tasks"]["sst2"]


def test_a_best_rate_at_the_end_of_the_grid_is_warned_about(tmp_path: Path) -> None:
    def grid(best: float) -> list[dict[str, Any]]:
        return [
            made_row(
                "sst2", "ppt", seed, learning_rate=rate, dev=0.9 if rate == best else 0.5, chosen=rate == best
            )
            for rate in (0.1, 0.3, 1.0)
            for seed in SEEDS
        ]

    inside = report([write_run(tmp_path / "inside", grid(0.3))], tmp_path / "out")
    assert inside.warnings == []
    end = report([write_run(tmp_path / "end", grid(1.0))], tmp_path / "out")
    assert any(
        "end of its grid" in warning and "PPT on sst2 (largest, 1)" in warning for warning in end.warnings
    )


def test_one_rate_is_no_grid_and_gives_no_warning(tmp_path: Path) -> None:
    assert report([write_run(tmp_path / "run", made_rows())], tmp_path / "out").warnings == []


def test_every_number_has_a_command_that_the_shell_reads(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run", made_rows(), tasks=["mine/sst2.yaml", "cb"])
    text = report([run], tmp_path / "out").text
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("ppt fewshot")]
    config = str(run / "config.yaml")
    assert ["ppt", "fewshot", config, "tasks=[mine/sst2.yaml]", "methods=[ppt]", "out=runs/again"] in commands
    assert len(commands) == 4


def test_a_command_names_the_file_whose_task_has_the_rows_name(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text("name: sst2\n", encoding="utf-8")
    run = write_run(tmp_path / "run", made_rows(("sst2",)), tasks=[str(file)])
    assert f"tasks=[{file}]" in report([run], tmp_path / "out").text


def test_chinese_names_are_drawn_or_reported_never_an_error(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from corpora.common import plots

    run = write_run(tmp_path / "run", made_rows(("情感", "cb")))
    here = report([run], tmp_path / "out")
    assert bool(plots.missing_glyphs(["情感"])) == any("no font" in warning for warning in here.warnings)
    monkeypatch.setattr(plots, "fonts", lambda: ("DejaVu Sans",))  # as a machine without Chinese fonts
    without = report([run], tmp_path / "without")
    assert any("no font of this machine draws 情感" in warning for warning in without.warnings)
    assert "情感" in (tmp_path / "without" / "report.html").read_text(encoding="utf-8")
    assert not [
        warning
        for warning in recwarn
        if "Glyph" in str(warning.message) or "findfont" in str(warning.message)
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"cell": 1}\n', 'line 1: field "task" is missing'),
        (json.dumps(made_row("sst2", "ppt", 0)) + "\n{broken\n", "line 2: not valid JSON"),
        ("[1]\n", "line 1: expected an object, found a list"),
        (json.dumps(made_row("sst2", "ppt", 0, test=None)) + "\n", "chosen but its"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.jsonl").write_text(text)
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        report([tmp_path / "run"], tmp_path / "out")
    assert "results.jsonl" in str(caught.value)


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        report([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(UserError, match="holds neither"):
        report([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="no run was given"):
        report([], tmp_path / "out")


def test_an_unfinished_last_line_is_left_out_and_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made_rows())
    with open(run / "results.jsonl", "a") as file:
        file.write('{"cell": "half')
    assert len(read_run(run).rows) == len(made_rows())
    assert any("not finished" in warning for warning in report([run], tmp_path / "out").warnings)


def test_a_run_without_finished_cells_still_reports(tmp_path: Path) -> None:
    rows = [{**row, "chosen": False, "test": None} for row in made_rows()]
    result = report([write_run(tmp_path / "run", rows)], tmp_path / "out")
    assert "No cell has been scored" in result.text
