"""Reading labelled sets, local and hub."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from corpora.common.errors import MachineError, UserError
from finetune.datasets import load_task
from finetune.task import Task

PAIR: dict[str, Any] = {
    "name": "pair",
    "format": "sentence_pair",
    "verbalizer": ["no", "maybe", "yes"],
    "pattern": "{one} <X> {two}",
}
CHOICE: dict[str, Any] = {
    "name": "quiz",
    "format": "multiple_choice",
    "pattern": "{q} ? {options} ? The correct one is <X>",
    "max_options": 4,
}


def make(folder: Path, values: dict[str, Any], train: Any, test: Any) -> Task:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for name, rows in (("train", train), ("test", test)):
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return Task.load(folder / "task.yaml")


def pairs(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"one": f"a {i}", "two": f"b {i}", "label": i % 3} for i in range(start, start + n)]


def test_jsonl_and_csv_plain_and_packed_give_the_same_rows(tmp_path: Path) -> None:
    task = make(tmp_path / "a", PAIR, pairs(9), pairs(3, 100))
    plain = load_task(task, None)
    (tmp_path / "b").mkdir()
    for name, rows in (("train", pairs(9)), ("test", pairs(3, 100))):
        lines = ["one,two,label", *(f'"{row["one"]}",{row["two"]},{row["label"]}' for row in rows)]
        with gzip.open(tmp_path / "b" / f"{name}.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    packed = load_task(task, {"pair": str(tmp_path / "b")})
    assert packed.train == plain.train and packed.test == plain.test
    assert packed.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"one": "x", "two": "y", "label": "mayb"},
            'field "label" is "mayb"; expected one of no, maybe, yes',
        ),
        ({"one": "x", "two": "y", "label": 3}, 'field "label" is 3; expected one of no, maybe, yes'),
        ({"one": "x", "two": "y"}, 'field "label" is missing; found one, two'),
        ({"one": "x", "label": 1}, 'field "two" is missing; found one, label'),
        ({"one": "x", "two": None, "label": 1}, 'field "two" is null; expected text'),
        ([1], "expected an object, found list"),
        ("{broken", "not valid JSON"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path, line: Any, message: str) -> None:
    bad = line if isinstance(line, str) else json.dumps(line)
    text = "".join(json.dumps(row) + "\n" for row in pairs(16)) + bad + "\n"
    task = make(tmp_path, PAIR, text, pairs(3, 100))
    with pytest.raises(UserError) as caught:
        load_task(task, None)
    assert f"train.jsonl line 17: {message}" in str(caught.value)


def test_a_short_csv_line_is_named(tmp_path: Path) -> None:
    task = make(tmp_path, PAIR, pairs(3), pairs(3, 100))
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.csv").write_text("one,two,label\na,b,no\na,b\n")
    with pytest.raises(UserError, match=r"train.csv line 3: the number of cells differs"):
        load_task(task, None)


def test_rows_that_repeat_or_stand_in_test_are_not_drawn_from_and_are_counted(tmp_path: Path) -> None:
    repeated = {"one": "a  1", "two": "b 1", "label": 0}  # white space aside the text of another row
    task = make(tmp_path, PAIR, [*pairs(9), repeated, *pairs(2, 100)], pairs(3, 100) + pairs(1, 100))
    data = load_task(task, None)
    assert len(data.train) == 9 and data.counts["duplicates"] == 1 and data.counts["also_in_test"] == 2
    assert data.train[1].label == 1  # the first of a text stays
    assert len(data.test) == 4  # no test row is ever left out


def test_own_options_are_labelled_by_number_letter_or_text(tmp_path: Path) -> None:
    options = ["red", "green", "blue"]
    rows = [
        {"q": f"{i}", "options": options, "label": label} for i, label in enumerate([1, "B", "green", "1"])
    ]
    rows.append({"q": "two", "options": ["x", "y"], "label": 0})
    data = load_task(make(tmp_path, CHOICE, rows, rows[:1]), None)
    assert [row.label for row in data.train] == [1, 1, 1, 0] and data.train[-1].options == ("x", "y")
    for label, expected in ((3, "from 0 to 2"), ("D", "from A to C"), ("pink", "option's text")):
        wrong = [{"q": "w", "options": options, "label": label}]
        with pytest.raises(UserError, match=expected):
            load_task(make(tmp_path, CHOICE, wrong, rows[:1]), None)
    many = [{"q": "w", "options": list("abcde"), "label": 0}]
    with pytest.raises(UserError, match="5 entries; expected a list of 2 to 4"):
        load_task(make(tmp_path, CHOICE, many, rows[:1]), None)


def test_options_may_be_columns_of_their_own(tmp_path: Path) -> None:
    values = {**CHOICE, "local": {"options": ["x", "y"], "label": "right"}}
    data = load_task(
        make(tmp_path, values, [{"q": "a", "x": "1", "y": "2", "right": "B"}], [{"q": "b", "x": "1", "y": "2", "right": "A"}]),
        None,
    )  # fmt: skip
    assert data.train[0].options == ("1", "2") and data.train[0].label == 1


def test_data_is_found_by_folder_by_language_or_beside_the_task_file(tmp_path: Path) -> None:
    task = make(tmp_path / "data" / "en" / "pair", PAIR, pairs(9), pairs(3, 100))
    far = tmp_path / "far"
    far.mkdir()
    moved = far / "task.yaml"
    moved.write_text(yaml.safe_dump(PAIR))
    for where in (tmp_path / "data", tmp_path / "data" / "en", {"pair": str(tmp_path / "data/en/pair")}):
        assert load_task(Task.load(moved), where).train == load_task(task, None).train
    with pytest.raises(UserError, match="no data for task pair: looked for"):
        load_task(Task.load(moved), far)
    with pytest.raises(UserError, match="names no hub data set"):
        load_task(Task.load(moved), None)
    # What lies beside the file is taken where a folder has other tasks, not where the folder is mistyped or the task's own.
    assert load_task(task, far).train == load_task(task, None).train
    for mistyped in (tmp_path / "nope", {"pair": str(tmp_path / "nope")}, {"pair": str(far)}):
        with pytest.raises(UserError, match="no data for task pair: looked for"):
            load_task(task, mistyped)


def test_the_numbers_of_labels_json_go_before_the_task_files(tmp_path: Path) -> None:
    task = make(tmp_path, PAIR, pairs(9), pairs(3, 100))
    (tmp_path / "labels.json").write_text('["yes", "no", "maybe"]')
    assert [row.label for row in load_task(task, None).train[:3]] == [2, 0, 1]
    (tmp_path / "labels.json").write_text('["yes", "nope", "maybe"]')
    with pytest.raises(UserError, match='names the label "nope"'):
        load_task(task, None)


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    values = {**PAIR, "local": {"unlabelled": ["-"]}}
    data = load_task(
        make(tmp_path, values, [*pairs(9), {"one": "x", "two": "y", "label": "-"}], pairs(3, 100)), None
    )
    assert len(data.train) == 9 and data.counts["unlabelled"] == 1


def test_an_empty_or_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training rows"):
        load_task(make(tmp_path, PAIR, "", pairs(3)), None)
    task = make(tmp_path, PAIR, pairs(3), pairs(3, 100))
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test.jsonl does not exist"):
        load_task(task, None)


def test_a_hub_data_set_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    for split, rows in (("train", pairs(9)), ("validation", pairs(3, 100))):
        pq.write_table(pa.Table.from_pylist(rows), hub / f"{split}-00000-of-00001.parquet")
    local = load_task(make(tmp_path / "local", PAIR, pairs(9), pairs(3, 100)), None)
    far = tmp_path / "task.yaml"
    far.write_text(yaml.safe_dump({**PAIR, "hub": {"path": str(tmp_path / "hub")}}))
    assert load_task(Task.load(far), None).fingerprint == local.fingerprint
    far.write_text(yaml.safe_dump({**PAIR, "hub": {"path": str(tmp_path / "hub"), "test": "tset"}}))
    with pytest.raises(UserError, match=r"split tset.*never checked"):
        load_task(Task.load(far), None)


@pytest.mark.parametrize(
    "name", ["sst2", "rte", "cb", "boolq", "race_m", "chnsenticorp", "ocnli", "c3", "tnews"]
)
def test_real_sets_are_read_whole(name: str, real_data: Path) -> None:
    task = Task.load(name)
    data = load_task(task, real_data)
    expected = {"sst2": 872, "rte": 277, "cb": 56, "boolq": 3270, "race_m": 1436, "chnsenticorp": 843,
                "ocnli": 2950, "c3": 3816, "tnews": 2010}  # fmt: skip
    assert len(data.test) == expected[name]
    assert len({row.label for row in data.train}) == (len(task.verbalizer) or 4)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "csv.gz"])
def test_a_line_that_is_not_utf8_is_named_with_file_and_number(tmp_path: Path, ending: str) -> None:
    task = make(tmp_path, PAIR, pairs(3), pairs(3, 100))
    (tmp_path / "train.jsonl").unlink()
    lines = [json.dumps(r) for r in pairs(5)] if ending == "jsonl" else ["one,two,label", *(f"a{i},b,no" for i in range(4))]  # fmt: skip
    data = (
        "\n".join([*lines, '{"one": "@", "two": "b", "label": 0}' if ending == "jsonl" else "@,b,no"]) + "\n"
    )
    raw = data.encode().replace(b"@", b"caf\xe9")
    (tmp_path / f"train.{ending}").write_bytes(gzip.compress(raw) if ending.endswith("gz") else raw)
    with pytest.raises(UserError, match=rf"train\.{ending} line 6: not UTF-8$"):
        load_task(task, None)


def test_a_hub_that_cannot_be_reached_is_the_machines_fault_and_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.datasets.hub_reachable", lambda: False)
    far = tmp_path / "task.yaml"
    far.write_text(yaml.safe_dump({**PAIR, "hub": {"path": "nobody/nothing_of_this_name"}}))
    with pytest.raises(MachineError, match=r"the hub cannot be reached.*nobody/nothing_of_this_name"):
        load_task(Task.load(far), None)
