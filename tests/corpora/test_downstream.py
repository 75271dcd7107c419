from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from corpora.common.errors import MachineError, UserError
from corpora.downstream import DownstreamText, find_sets, read_set

ROWS = [{"premise": "It rains.", "label": 0}, {"premise": "سماء", "choices": ["是", {"b": "no"}], "id": 7}]
TEXTS = [(1, "premise", "It rains."), (2, "premise", "سماء"), (2, "choices", "是"), (2, "choices.b", "no")]


def read(*sets: str | Path) -> list[DownstreamText]:
    return [text for name, source in find_sets([str(s) for s in sets]) for text in read_set(name, source)]


def as_lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz", "test.json", "rows.json", "test.parquet"])
def test_every_string_of_every_row_is_read_whatever_the_fields_are_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "rows.json":
        path.write_text(json.dumps(ROWS, indent=2))
    elif name == "test.parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [dict(ROWS[0]), {"premise": "سماء", "choices": ["是", "no"]}]
        pq.write_table(
            pa.Table.from_pylist(
                rows,
                pa.schema(
                    [("premise", pa.string()), ("label", pa.int64()), ("choices", pa.list_(pa.string()))]
                ),
            ),
            path,
        )
    else:
        path.write_bytes(gzip.compress(as_lines()) if name.endswith(".gz") else as_lines())
    found = [tuple(text)[1:] for text in read(path)]
    assert found == (TEXTS if name != "test.parquet" else [*TEXTS[:3], (2, "choices", "no")])


def test_tables_and_plain_lines_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("sentence\tlabel\nIt rains.\t1\n")
    (tmp_path / "b.csv").write_text('sentence,label\n"Yes, it does.",0\n')
    (tmp_path / "c.txt").write_text("One.\nTwo.\n")
    assert [tuple(text) for text in read(tmp_path)] == [
        ("a.tsv", 2, "sentence", "It rains."), ("a.tsv", 2, "label", "1"),
        ("b.csv", 2, "sentence", "Yes, it does."), ("b.csv", 2, "label", "0"),
        ("c.txt", 1, "text", "One.\n"), ("c.txt", 2, "text", "Two.\n"),
    ]  # fmt: skip


def test_names_do_not_say_where_the_files_lie_and_tell_sets_apart(tmp_path: Path) -> None:
    for place in ("x", "y/z"):
        for task in ("rte", "cb"):
            folder = tmp_path / place / task
            folder.mkdir(parents=True)
            (folder / "test.jsonl").write_bytes(as_lines())
    for place in ("x", "y/z"):
        assert [n for n, _ in find_sets([str(tmp_path / place)])] == ["cb/test.jsonl", "rte/test.jsonl"]
    assert [n for n, _ in find_sets([str(tmp_path / "x" / "rte")])] == ["test.jsonl"]
    twice = [str(tmp_path / "x/rte/test.jsonl"), str(tmp_path / "y/z/rte/test.jsonl")]
    assert [n for n, _ in find_sets(twice)] == ["rte/test.jsonl (1)", "rte/test.jsonl (2)"]


def test_a_hub_data_set_gives_all_its_splits_or_the_one_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "owner" / "set"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["first"]}), folder / "train.parquet")
    pq.write_table(pa.table({"text": ["second"]}), folder / "test.parquet")
    assert [text.text for text in read(f"hub:{folder}")] == ["first", "second"]
    assert [tuple(t) for t in read(f"hub:{folder}:default:test")] == [
        ("hub:owner/set:default:test", 1, "text", "second")
    ]
    with pytest.raises(UserError, match="expected hub:namespace/name"):
        read("hub:a/b:c:d:e")
    with pytest.raises(MachineError, match="hub:nobody/nothing: the hub cannot be reached"):
        read("hub:nobody/nothing")  # tests run offline


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": "b"}\n{"a": \n', "a.jsonl line 2: not valid JSON"),
        ("a.jsonl", b'{"a": "\xff"}\n', "a.jsonl line 1: not UTF-8"),
        ("a.txt", b"fine\n\xff\n", "a.txt line 2: not UTF-8"),
        ("a.csv", b"a,b\n1\n", "a.csv line 2: the number of cells differs"),
        ("a.jsonl.gz", gzip.compress(as_lines())[:-9], "damaged gz data"),
        ("a.parquet", b"no table", "not a Parquet file"),
    ],
)
def test_a_damaged_set_is_an_error_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)
