"""Builds of malformed sources: no traceback, and every record is either a document or counted with reason and place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.build import build
from corpora.build_settings import BuildSettings
from corpora.common.errors import PPTError, UserError
from corpora.common.files import read_json
from corpora.common.rng import generator

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
WORDS = ["boat", "Anna", "said", "ü", "水", "𝄞", "\u200f", "end.", "?", "a" * 300]
PLACE = re.compile(r"(line|row) \d+$")


def text(rng: np.random.Generator) -> str:
    """A few lines of words."""
    lines = [" ".join(rng.choice(WORDS, rng.integers(0, 9)).tolist()) for _ in range(rng.integers(1, 8))]
    return "\n".join(lines)


def valid(kind: str, rng: np.random.Generator) -> bytes:
    """A file of a kind with some good documents."""
    texts = [text(rng) for _ in range(rng.integers(0, 12))]
    if kind == "txt":
        return "\n\n".join(texts).encode()
    if kind == "jsonl":
        return "".join(
            json.dumps({"text": t}, ensure_ascii=bool(rng.integers(2))) + "\n" for t in texts
        ).encode()
    if kind == "csv":
        cells = ('"' + t.replace('"', '""') + '"' for t in texts)
        return ("id,text\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))).encode()
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), buffer, compression="none")
    return buffer.getvalue()


def nested(rng: np.random.Generator) -> bytes:
    depth = int(rng.choice([3, 900, 100_000]))
    return b'{"text": ' + b"[" * depth + b"]" * depth + b"}"


LINES: list[Callable[[np.random.Generator], bytes]] = [
    lambda rng: b'{"text": 5}',
    lambda rng: b'{"text": null, "text": {"text": "x"}}',
    lambda rng: b'{"body": "x"}',
    lambda rng: b'{"text": "\\ud800 half"}',
    lambda rng: b'{"text": NaN, "x": Infinity}',
    lambda rng: b'{"n": ' + b"9" * 5000 + b', "text": "long number"}',
    lambda rng: b'[["text"], "nested"]',
    lambda rng: b"\xff\xfe\x00broken",
    lambda rng: b'"unclosed, quote',
    lambda rng: b"a,b,c,d,e",
    lambda rng: b"\x00" * int(rng.integers(1, 50)),
    lambda rng: bytes(rng.integers(0, 256, rng.integers(1, 60)).astype(np.uint8)).replace(b"\n", b""),
    nested,
]


def spoil(data: bytes, rng: np.random.Generator) -> bytes:
    """Make a file malformed in one way or several."""
    for _ in range(rng.integers(1, 4)):
        way, at = int(rng.integers(8)), int(rng.integers(0, len(data) + 1))
        if way == 0:  # cut short
            data = data[:at]
        elif way == 1:  # one byte another
            data = data[:at] + bytes([rng.integers(256)]) + data[at + 1 :]
        elif way == 2:  # bytes put in
            data = data[:at] + LINES[rng.integers(len(LINES))](rng) + data[at:]
        elif way in (3, 4):  # a malformed line
            data = data[:at] + b"\n" + LINES[rng.integers(len(LINES))](rng) + b"\n" + data[at:]
        elif way == 5:  # other line ends
            data = data.replace(b"\n", [b"\r\n", b"\r", b"\n\n", b"\n\r"][rng.integers(4)])
        elif way == 6:  # another head
            data = [b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PAR1", b"\x00"][rng.integers(5)] + data
        else:  # a part twice
            data = data[:at] + data[: int(rng.integers(0, len(data) + 1))] + data[at:]
    return data


def records(kind: str, data: bytes) -> int | None:
    """How many records a plain file has, counted in another way; None where only the reader knows."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data:
        return 1  # the empty file
    if kind == "jsonl":
        return sum(bool(line) and not line.isspace() for line in data.split(b"\n"))
    if kind == "txt":
        return len([part for part in re.split(rb"\n\s*\n", b"\n" + data + b"\n") if part.strip()])
    return None


def fuzz(folder: Path, tokenizer: Path, seed: int, count: int) -> None:
    """Build malformed sources, `count` of them and some good ones beside, a few files a build."""
    rng = generator(seed, "fuzz")
    done = 0
    while done < count:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        expected: int | None = 0
        files = []
        for number in range(int(rng.choice([1, 1, 2, 5]))):  # of a file alone, the number of records is known
            kind, pack = (
                rng.choice(["txt", "jsonl", "jsonl", "csv", "parquet"]),
                rng.choice(list(PACK), p=[0.6, *[0.1] * 4]),
            )
            data = valid(kind, rng)
            malformed = rng.random() < 0.9
            if malformed:
                data = spoil(data, rng)
            known = records(kind, data)
            data = PACK[pack](data)
            if pack and rng.random() < 0.5:
                data, known, malformed = spoil(data, rng), None, True
            done += malformed
            expected = None if known is None or expected is None else expected + known
            files.append(folder / f"{number}.{kind}{pack}")
            files[-1].write_bytes(data)
        settings = BuildSettings(
            text=[str(file) for file in files], tokenizer=str(tokenizer), out=str(folder / "build"),
            formats=["sentence_pair"], part_bytes=int(rng.choice([120, 900, 1 << 20])), unit=rng.choice(["paragraphs", "sentences"]),
        )  # fmt: skip
        try:
            manifest = read_json(build(settings) / "store" / "manifest.json")
        except UserError as error:
            assert "\n" not in str(error)
            assert re.search(r'no text in|no column "text"', str(error)), error
            manifest = None
        else:
            dropped = {reason: manifest["dropped"][reason] for reason in manifest["dropped_places"]}
            assert all(
                PLACE.search(place) for places in manifest["dropped_places"].values() for place in places
            )
            if expected is not None:
                assert manifest["documents"] + sum(dropped.values()) == expected, (files, dropped)
        strict = settings.model_copy(update={"strict": True, "out": str(folder / "strict")})
        if manifest is not None and not dropped:
            build(strict)
            continue
        with pytest.raises(PPTError) as stopped:
            build(strict)
        assert stopped.value.exit_code == 2 and "\n" not in str(stopped.value)
        if manifest is not None:
            first = [places[0] for places in manifest["dropped_places"].values()]
            assert any(f"{place}: " in str(stopped.value) for place in first), (stopped.value, first)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cut is tested here, and thousands of small files would wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_malformed_sources_never_end_in_a_traceback_and_lose_nothing_silently(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    fuzz(tmp_path / "fuzz", tokenizer_dir, seed=0, count=80)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(1, 5))
def test_ten_thousand_malformed_sources_never_end_in_a_traceback(
    tmp_path: Path, tokenizer_dir: Path, seed: int
) -> None:
    fuzz(tmp_path / "fuzz", tokenizer_dir, seed, count=2500)


@pytest.mark.torture
def test_a_line_of_200_megabytes_is_counted_and_the_build_goes_on(
    settings_of: Callable[..., BuildSettings], tmp_path: Path, pocket_docs: list[list[str]]
) -> None:
    good = "".join(json.dumps({"text": "\n".join(document)}) + "\n" for document in pocket_docs).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + b'{"text": "' + b"word " * 40_000_000 + b'"}\n' + good)
    out = build(settings_of("build", text=[str(path)], labeller=None, formats=["sentence_pair"]))
    manifest = read_json(out / "store" / "manifest.json")
    assert manifest["documents"] == 2 * len(pocket_docs)
    assert manifest["dropped_places"] == {"record over 64 MiB": [f"a.jsonl line {len(pocket_docs) + 1}"]}
