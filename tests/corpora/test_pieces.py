"""Tests of corpora/pieces.py and corpora/lines.py: however a source is cut, its records are the same."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora import lines as lines_module
from corpora import pieces
from corpora.documents import read_records
from corpora.lines import TOO_LONG, Bad, Lines, Record
from corpora.pieces import Block, Range, blocks, ranges
from corpora.sources import Source

TEXT_LINES = [b"a", b"bb bb", b"", b" \t", b"\xff", b"\xef\xbb\xbfhead", b"x" * 30, b"cr\r", b"nul\0"]
JSON_LINES = [
    b'{"text": "a"}',
    b'"b"',
    b"",
    b"{",
    b'{"text": "c\\nd"}',
    b"\xff",
    b'{"x": NaN, "text": "e"}',
    b"[]",
]


def joined(source: Source, found: list[Range] | list[Block]) -> list[Record]:
    """The records of all parts, numbered in the source."""
    records, before = [], 0
    for piece in found:
        lines = Lines()
        first = before if isinstance(piece, Range) else piece.first - 1
        records += [(first + number, text) for number, text in piece.records(source, "text", lines)]
        before += lines.count
    return records


@pytest.mark.parametrize(("kind", "some"), [("txt", TEXT_LINES), ("jsonl", JSON_LINES)])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(), part_bytes=st.integers(1, 60), ended=st.booleans(), longest=st.sampled_from([20, 1 << 20])
)
def test_any_cut_of_a_file_packed_or_not_gives_the_records_of_the_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    some: list[bytes],
    data: st.DataObject,
    part_bytes: int,
    ended: bool,
    longest: int,
) -> None:
    for module in (lines_module, pieces):
        monkeypatch.setattr(module, "MAX_RECORD", longest)
    content = b"\n".join(data.draw(st.lists(st.sampled_from(some), max_size=12))) + b"\n" * ended
    plain, packed = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    whole = list(read_records(Source(str(plain), kind), "text"))
    source = Source(str(plain), kind)
    cut = ranges(source, part_bytes)
    assert [piece.part for piece in cut] == list(range(max(1, -(-len(content) // part_bytes))))
    assert joined(source, cut) == whole
    source = Source(str(packed), kind, ".gz")
    assert joined(source, list(blocks(source, part_bytes, "text"))) == whole


def test_a_line_that_never_ends_is_counted_once_and_the_next_lines_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (lines_module, pieces):
        monkeypatch.setattr(module, "MAX_RECORD", 1000)
    for kind, good in (("jsonl", b'{"text": "good"}\n'), ("txt", b"good\n\n")):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(good + b"x" * 5000 + b"\n\n" + good)
        source = Source(str(path), kind)
        records = list(read_records(source, "text"))
        place = 2 if kind == "jsonl" else 3
        assert records == [(1, "good"), (place, Bad(TOO_LONG)), (place + 2, "good")]
        assert joined(source, ranges(source, 700)) == records


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_are_cut_while_they_are_read(tmp_path: Path, kind: str) -> None:
    texts = [f"text number {number}" for number in range(50)]
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("text\n" + "\n".join(texts) + "\n2,columns\n")
    else:
        pq.write_table(pa.table({"text": [*texts, None]}), path)
    source = Source(str(path), kind)
    cut = list(blocks(source, 200, "text"))
    assert len(cut) > 3 and joined(source, cut) == list(read_records(source, "text"))
    assert isinstance(joined(source, cut)[-1][1], Bad)


@pytest.mark.parametrize("pack", [gzip.compress])
def test_damaged_data_end_a_source_with_one_bad_record(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    content = "".join(json.dumps({"text": f"line {number} {number * 7919}"}) + "\n" for number in range(3000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(pack(content.encode())[:-3000])
    source = Source(str(path), "jsonl", ".gz")
    records = joined(source, list(blocks(source, 4000, "text")))
    whole = list(read_records(source, "text"))
    assert records == whole and isinstance(whole[-1][1], Bad) and "damaged gz data" in whole[-1][1].reason
    assert all(isinstance(text, str) for _, text in whole[:-1])
