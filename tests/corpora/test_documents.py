from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from corpora.common.errors import MachineError, UserError
from corpora.documents import Counts, read_documents

TEXTS = ["One line.\nTwo lines.", "Ein Wort: Ä.", "本田真凜。"]
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def texts(*sources: str | Path, **options: object) -> list[str]:
    return [document.text for document in read_documents([str(s) for s in sources], **options)]  # type: ignore[arg-type]


def as_bytes(kind: str, folder: Path) -> bytes:
    if kind == "txt":
        return "\n\n".join(TEXTS).encode()
    if kind == "jsonl":
        return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    path = folder / "table"
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerows([["id", "text"], *([str(i), text] for i, text in enumerate(TEXTS))])
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": [0, 1, 2], "text": TEXTS}), path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("compression", list(PACK))
def test_every_kind_gives_the_same_documents_packed_or_not(
    tmp_path: Path, kind: str, compression: str
) -> None:
    path = tmp_path / f"documents.{kind}{compression}"
    path.write_bytes(PACK[compression](as_bytes(kind, tmp_path)))
    assert texts(path) == TEXTS


def test_plain_text_documents_stand_between_blank_lines_and_keep_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \t\r\nthree\n")
    documents = list(read_documents([path]))
    assert [(d.line, d.text) for d in documents] == [(1, "one\ntwo"), (5, "three")]


def test_folders_and_patterns_are_read_in_order_of_name_and_sources_as_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    (folder / "z").mkdir(parents=True)
    for name, text in {
        "b.txt": "b",
        "a.txt": "a",
        "z/c.txt": "c",
        "notes.md": "no",
        ".hidden.txt": "no",
    }.items():
        (folder / name).write_text(text)
    (tmp_path / "first.txt").write_text("first")
    assert texts(tmp_path / "first.txt", folder) == ["first", "a", "b", "c"]
    assert texts(folder, tmp_path / "first.txt") == ["a", "b", "c", "first"]
    assert "3 files of text are read, 2 others are not (.hidden.txt, notes.md)" in capsys.readouterr().err
    assert texts(folder / "*.txt") == ["a", "b"]


def test_bad_records_are_counted_with_reason_and_place_and_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}',
        b"{broken",
        b'{"body": "x"}',
        b'{"text": null}',
        b'{"text": "  "}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"[1]",
        b"",
        b'"a bare string"',
        b"{again",
    ]
    path.write_bytes(b"\n".join(lines))
    counts = Counts()
    found = [d.text for d in read_documents([path], counts=counts)]
    assert found == ["good", "a bare string"]
    assert counts.documents == 2
    assert counts.dropped == {
        "not valid JSON": 2,
        'no field "text"': 1,
        'field "text" is no string': 1,
        "empty document": 1,
        "not UTF-8": 1,
        "not valid Unicode": 1,
        "a JSON list, expected an object": 1,
    }
    assert counts.places["not valid JSON"] == ["a.jsonl line 2", "a.jsonl line 11"]
    assert "2 records dropped: not valid JSON (a.jsonl line 2, a.jsonl line 11)" in counts.lines()


def test_strict_stops_at_the_first_bad_record_and_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{broken\n')
    with pytest.raises(UserError, match=r"a\.jsonl line 2: not valid JSON") as error:
        texts(path, strict=True)
    assert error.value.exit_code == 2
    path.write_text('{"text": "good"}\n{"text": ""}\n')
    with pytest.raises(UserError, match="line 2: empty document"):
        texts(path, strict=True)


def test_a_line_of_plain_text_that_is_not_utf8_drops_its_document_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\ntwo\n\xff\xfe\n\nthree\n")
    counts = Counts()
    assert [d.text for d in read_documents([path], counts=counts)] == ["one", "three"]
    assert counts.places == {"not UTF-8": ["a.txt line 4"]}


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "csv.gz"])
def test_an_empty_file_is_counted(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(gzip.compress(b"") if kind.endswith("gz") else b"")
    counts = Counts()
    assert not list(read_documents([tmp_path / f"a.{kind}"], counts=counts))
    assert counts.places == {"empty file": [f"a.{kind} line 1"]}


def test_csv_rows_of_another_width_are_counted_and_long_fields_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    long = "word " * 100_000
    path.write_text(f'id,text\n1,"two\nlines"\n2\n3,{long}\n')
    counts = Counts()
    assert [d.text for d in read_documents([path], counts=counts)] == ["two\nlines", long]
    assert counts.places == {"1 columns, expected 2": ["a.csv line 4"]}


def test_quotes_are_characters_in_tsv_and_swallow_no_document(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"one\n2\ttwo\n3\tthree"\n')
    assert texts(path) == ['"one', "two", 'three"']


def test_another_text_field_can_be_named_and_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,body\n1,hello\n")
    assert texts(path, text_field="body") == ["hello"]
    with pytest.raises(UserError, match='no column "bdy"; did you mean "body"'):
        texts(path, text_field="bdy")


@pytest.mark.parametrize("compression", [".gz", ".xz", ".bz2", ".zst"])
def test_damaged_compressed_data_counts_once_with_its_place_and_what_came_before_is_kept(
    tmp_path: Path, compression: str
) -> None:
    path = tmp_path / f"a.txt{compression}"
    whole = PACK[compression](b"first\n\n" + os.urandom(200_000).hex().encode())
    path.write_bytes(whole[: len(whole) * 3 // 4])
    counts = Counts()
    found = texts(path, counts=counts)
    assert found[0] == "first" if found else compression == ".bz2"
    (reason,) = counts.dropped
    assert reason.startswith(f"damaged {compression[1:]} data") and counts.dropped[reason] == 1
    with pytest.raises(UserError, match=rf"a\.txt{compression} line \d+: damaged {compression[1:]} data"):
        texts(path, strict=True)


def test_a_file_that_is_no_parquet_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("hello")
    counts = Counts()
    assert not texts(tmp_path / "a.parquet", counts=counts)
    (reason,) = counts.dropped
    assert "not a Parquet file" in reason and counts.places[reason] == ["a.parquet row 1"]


def test_a_nul_character_spoils_its_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\nt\0wo\n\nthree")
    counts = Counts()
    assert texts(tmp_path / "a.txt", counts=counts) == ["one", "three"]
    assert counts.places == {"NUL character": ["a.txt line 3"]}


def test_a_file_that_may_not_be_read_is_a_failure_of_the_machine(
    tmp_path: Path, without_rights: Callable[[Callable[[], object]], tuple[int, str]]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    assert without_rights(lambda: texts(path)) == (1, f"cannot read {path}: permission denied")


def test_a_hub_data_set_is_streamed(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "owner" / "set"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": [*TEXTS, None]}), folder / "train.parquet")
    pq.write_table(pa.table({"text": ["held out"]}), folder / "validation.parquet")
    counts = Counts()
    found = [d.text for d in read_documents([f"hub:{folder}"], counts=counts)]
    assert found == TEXTS
    assert counts.dropped == {'field "text" is no string': 1}
    assert texts(f"hub:{folder}:default:validation") == ["held out"]
    with pytest.raises(UserError, match='no column "txt"'):
        texts(f"hub:{folder}", text_field="txt")
    with pytest.raises(UserError, match="expected hub:namespace/name"):
        texts("hub:a/b:c:d:e")
    with pytest.raises(MachineError, match="hub:nobody/nothing: the hub cannot be reached"):
        texts("hub:nobody/nothing")  # tests run offline


@pytest.mark.parametrize("broken", [b'{"text": "a"}\n{oops\n', b'{"text": "a"}\n{"text": "\xff"}\n'])
def test_a_record_of_a_hub_data_set_that_cannot_be_read_is_counted(tmp_path: Path, broken: bytes) -> None:
    folder = tmp_path / "owner" / "set"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(broken)
    counts = Counts()
    list(read_documents([f"hub:{folder}"], counts=counts))
    (reason,) = counts.dropped
    assert reason.startswith("a record that cannot be read (")
