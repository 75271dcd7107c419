from __future__ import annotations

import csv
import io
import json

import pytest

from corpora.common.errors import UserError
from corpora.common.records import csv_rows, json_lines


def test_json_lines_are_numbered_as_an_editor_does_and_blank_ones_passed_over() -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n  \t\n{"b": "\xc3\xa9\xe2\x80\xa8"}\n{"c": "\\ud83d\\ude00"}'
    found = list(json_lines("a.jsonl", io.BytesIO(data)))
    assert found == [(1, {"a": 1}), (4, {"b": "é\u2028"}), (5, {"c": "😀"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", "not valid JSON (Expecting property name enclosed in double quotes)"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON (Exceeds the limit"),
        (b"[1]", "expected an object, found list"),
        (b'"caf\xe9"', "not UTF-8"),
        (b'{"a": "\\uD83d x"}', "not UTF-8"),
    ],
)
def test_a_bad_json_line_is_an_error_with_its_place(line: bytes, message: str) -> None:
    rows = json_lines("a.jsonl", io.BytesIO(b'{"a": 1}\n\n' + line + b"\n"))
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(UserError) as error:
        next(rows)
    assert str(error.value).startswith(f"a.jsonl line 3: {message}") and "\n" not in str(error.value)


def test_csv_rows_have_the_headers_names_and_the_line_they_end_on() -> None:
    data = '\ufefftext,label\r\n"one\r\ntwo, three",1\r\n\r\né,2'.encode()
    found = list(csv_rows("a.csv", io.BytesIO(data)))
    assert found == [(3, {"text": "one\r\ntwo, three", "label": "1"}), (5, {"text": "é", "label": "2"})]


@pytest.mark.parametrize("name", ["a.tsv", "a.TSV.gz"])
def test_quotes_are_characters_in_tsv_and_swallow_no_row(name: str) -> None:
    data = b'text\tlabel\n"It was good\t1\nPlain\t0\nShe said "no"\t1\n"All of it"\t0\n'
    found = list(csv_rows(name, io.BytesIO(data)))
    assert [(line, row["text"]) for line, row in found] == [
        (2, '"It was good'), (3, "Plain"), (4, 'She said "no"'), (5, '"All of it"'),
    ]  # fmt: skip
    with pytest.raises(
        UserError, match=r"a.tsv line 2: .* header's 2; in TSV a tab or a line break ends a cell"
    ):
        list(csv_rows("a.tsv", io.BytesIO(b'text\tlabel\n"one\ttwo"\t1\n')))


def test_a_cell_may_be_as_long_as_a_document_whatever_was_read_before() -> None:
    csv.field_size_limit(1 << 17)
    text = "word " * 100_000
    for name in ("a.csv", "a.tsv"):
        delimiter = b"\t" if name == "a.tsv" else b","
        data = b"text" + delimiter + b"label\n" + text.encode() + delimiter + b"1\n"
        assert list(csv_rows(name, io.BytesIO(data))) == [(2, {"text": text, "label": "1"})]
        csv.field_size_limit(1 << 17)


def test_two_columns_of_one_name_are_refused_but_not_two_without_one() -> None:
    with pytest.raises(UserError, match=r'a\.csv line 1: two columns have the name "text"; rename one'):
        list(csv_rows("a.csv", io.BytesIO(b"text,label,text\na,1,b\n")))
    found = list(csv_rows("a.csv", io.BytesIO(b"text,label,,\na,1,,\n")))
    assert found == [(2, {"text": "a", "label": "1", "": ""})]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"x", "the number of cells differs from the header's 2"),
        (b"x,1,2", "the number of cells differs from the header's 2"),
        (b'"x"y,1', "not valid CSV ("),
        (b"caf\xe9,1", "not UTF-8"),
    ],
)
def test_a_bad_csv_row_is_an_error_with_its_place(row: bytes, message: str) -> None:
    rows = csv_rows("a.csv", io.BytesIO(b"text,label\nx,1\n" + row + b"\n"))
    assert next(rows) == (2, {"text": "x", "label": "1"})
    with pytest.raises(UserError) as error:
        next(rows)
    assert str(error.value).startswith(f"a.csv line 3: {message}")


def test_a_text_that_holds_escaped_backslashes_is_no_broken_pair() -> None:
    text = json.dumps({"a": "C:\\udata \\ud83d"})
    assert list(json_lines("a.jsonl", [text.encode()])) == [(1, {"a": "C:\\udata \\ud83d"})]
