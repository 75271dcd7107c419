"""Tests of corpora/task_corpus.py."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpora.common.errors import UserError
from corpora.common.files import atomic_folder, manifest_hash
from corpora.draws import draw
from corpora.example_index import INDEX_FILES
from corpora.formats import FORMATS, render_pretraining
from corpora.store import SentenceStore
from corpora.task_corpus import TaskCorpus
from corpora.task_corpus_writer import write_task_corpus
from corpora.tokenizer import Tokenizer

PROMPT_LEN = 100


def write(folder: Path, format: str, store: SentenceStore, **fields: object) -> None:
    options: dict[str, object] = {}
    if format == "single_text":
        options = {"labels": np.arange(store.n_units) % 2, "probs": np.ones(store.n_units), "n_classes": 2}
        fields = {"label_words": ["bad", "good"], **fields}
    with atomic_folder(folder / format) as partial:
        write_task_corpus(
            partial,
            format,
            draw(format, store, 0, **options),
            {"store": manifest_hash(store.folder), **fields},
        )


@pytest.fixture(scope="module")
def build(
    tmp_path_factory: pytest.TempPathFactory,
    pocket_docs: list[list[str]],
    tokenizer: Tokenizer,
    write_store: Callable[..., SentenceStore],
) -> Path:
    folder = tmp_path_factory.mktemp("build")
    long = [" ".join(document) * (1 + k % 4) for k, document in enumerate(pocket_docs[:8])]
    store = write_store(folder / "store", [*pocket_docs[:60], long])
    tokenizer.save(folder / "tokenizer")
    for format in FORMATS:
        write(folder, format, store)
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_drawn_is_read_back(build: Path, format: str) -> None:
    corpus = TaskCorpus.open(build, format)
    table = pq.read_table(build / format / "examples.parquet")
    assert table.schema.names == ["query", "options", "label", "split"]
    assert [str(kind) for kind in table.schema.types] == ["int64", "list<element: int64>", "int16", "string"]
    rows = table.to_pylist()
    assert len(rows) == len(corpus) > 0
    for number, row in enumerate(rows):
        assert corpus.units(number) == (row["query"], row["options"])
    assert corpus.n_options(np.arange(len(rows))).tolist() == [len(row["options"]) for row in rows]
    assert corpus.label(np.arange(len(rows))).tolist() == [row["label"] for row in rows]
    for split in ("train", "validation"):
        expected = [number for number, row in enumerate(rows) if row["split"] == split]
        assert corpus.rows(split).tolist() == list(corpus.split(split)) == expected
        assert (
            corpus.manifest["examples"][split]
            == len(expected)
            == sum(corpus.manifest["labels"][split].values())
        )
    assert list(corpus.manifest["labels"]["train"]) == sorted(corpus.label_words)
    assert corpus.manifest_hash == manifest_hash(build / format)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_render_from_the_store_and_lengths_are_known_before(
    build: Path, tokenizer: Tokenizer, format: str
) -> None:
    corpus = TaskCorpus.open(build, format)
    rows = np.arange(len(corpus))
    lengths = corpus.lengths(rows, PROMPT_LEN)
    assert lengths.dtype == np.int32 and len(set(lengths.tolist())) > 5
    many = corpus.render_batch(rows, tokenizer, PROMPT_LEN)
    assert len(many) == len(rows) and many.input_ids.dtype == np.int32
    assert many.labels.tolist() == corpus.label(rows).tolist()
    assert np.diff(many.offsets).tolist() == lengths.tolist()
    for row in rows.tolist():
        example = corpus.render(row, tokenizer, PROMPT_LEN)
        assert len(example.input_ids) == lengths[row]
        assert (example.input_ids == tokenizer.sentinel(0)).sum() == 1
        assert (
            many.input_ids[many.offsets[row] : many.offsets[row + 1]].tolist() == example.input_ids.tolist()
        )
    query, options = corpus.units(7)
    ids = corpus.store.unit_ids
    expected = render_pretraining(
        tokenizer, format, ids(query), [ids(unit) for unit in options], int(corpus.label(rows)[7]), PROMPT_LEN
    )
    assert corpus.render(7, tokenizer, PROMPT_LEN).input_ids.tolist() == expected.input_ids.tolist()
    assert corpus.lengths(rows[[9, 3]], PROMPT_LEN).tolist() == lengths[[9, 3]].tolist()
    assert corpus.lengths(rows[:0], PROMPT_LEN).tolist() == []
    assert corpus.render_batch(rows[:0], tokenizer, PROMPT_LEN).offsets.tolist() == [0]


@pytest.mark.defect(12)
@pytest.mark.parametrize("format", ["multiple_choice", "unified"])
def test_no_rendered_choice_has_two_equal_options(build: Path, tokenizer: Tokenizer, format: str) -> None:
    corpus = TaskCorpus.open(build, format)
    dot = tokenizer.glue(".")
    for row in range(len(corpus)):
        ids = corpus.render(row, tokenizer, PROMPT_LEN).input_ids.tolist()
        n = len(corpus.units(row)[1])
        marks = [k for k in range(len(ids) - 1) if ids[k + 1] == dot and ids[k] in tokenizer.letters[:n]]
        options, k = [], 0
        for letter in tokenizer.letters[:n]:  # the k-th letter in order; text may spell letters too
            k = next(place for place in marks if place >= k and ids[place] == letter)
            options.append(k)
        ends = [*options[1:], len(ids)]
        texts = [tuple(ids[start + 2 : end]) for start, end in zip(options, ends, strict=True)]
        assert len(set(texts)) == n


def test_a_large_corpus_opens_in_milliseconds_and_next_to_no_memory_of_its_own(
    build: Path, tmp_path: Path
) -> None:
    for name in ("store", "tokenizer"):
        (tmp_path / name).symlink_to(build / name)
    folder, n = tmp_path / "unified", 25_000_000
    folder.mkdir()
    manifest = json.loads((build / "unified" / "manifest.json").read_text())
    manifest["examples"] = {"train": n - 1000, "validation": 1000}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sizes = (4 * n, 4 * 10 * n, 8 * n, 2 * n)  # 1.35 GB, none of it on the disk but the last offset
    for name, size in zip(INDEX_FILES, sizes, strict=True):
        with open(folder / name, "wb") as file:
            file.truncate(size)
            if name == "option_offsets.bin":
                file.seek(size)
                file.write(np.int64(10 * n).tobytes())
    seconds = []
    tracemalloc.start()
    for _ in range(3):
        start = time.perf_counter()
        corpus = TaskCorpus.open(tmp_path, "unified")
        assert (len(corpus), corpus.split("validation")) == (n, range(n - 1000, n))
        seconds.append(time.perf_counter() - start)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert min(seconds) < 0.05 and peak < 1_000_000


def test_equal_draws_give_equal_bytes(build: Path, tmp_path: Path) -> None:
    write(tmp_path, "unified", SentenceStore.open(build / "store"))
    for name in ("examples.parquet", "manifest.json", *INDEX_FILES):
        assert (tmp_path / "unified" / name).read_bytes() == (build / "unified" / name).read_bytes()


def test_many_row_groups_read_as_one(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpora.task_corpus_writer.ROW_GROUP", 50)
    write(tmp_path, "unified", SentenceStore.open(build / "store"))
    assert pq.ParquetFile(tmp_path / "unified" / "examples.parquet").num_row_groups > 3
    for name in ("store", "tokenizer"):
        (tmp_path / name).symlink_to(build / name)
    one, two = TaskCorpus.open(build, "unified"), TaskCorpus.open(tmp_path, "unified")
    assert [one.units(row) for row in range(len(one))] == [two.units(row) for row in range(len(two))]
    assert one.rows("validation").tolist() == two.rows("validation").tolist()


def test_chinese_corpora_render_the_chinese_pattern(build: Path, tmp_path: Path) -> None:
    write(tmp_path, "multiple_choice", SentenceStore.open(build / "store"), language="zh")
    manifest = json.loads((tmp_path / "multiple_choice" / "manifest.json").read_text())
    assert manifest["pattern"].endswith("正确的一项是 <X>") and manifest["language"] == "zh"


def test_a_corpus_of_another_store_or_vocabulary_is_refused(
    build: Path,
    tmp_path: Path,
    pocket_docs: list[list[str]],
    tokenizer: Tokenizer,
    write_store: Callable[..., SentenceStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_store(tmp_path / "store", pocket_docs[:10])
    (tmp_path / "unified").symlink_to(build / "unified")
    with pytest.raises(UserError, match="was drawn from store"):
        TaskCorpus.open(tmp_path, "unified")
    corpus = TaskCorpus.open(build, "unified")
    monkeypatch.setattr(tokenizer, "fingerprint", "0" * 64)
    for render in (
        lambda: corpus.render(0, tokenizer, 4),
        lambda: corpus.render_batch(np.arange(2), tokenizer, 4),
    ):
        with pytest.raises(UserError, match="build the corpora with the backbone's tokenizer"):
            render()


def test_missing_broken_and_misplaced_corpora_are_refused_in_one_line(build: Path, tmp_path: Path) -> None:
    for name in ("store", "tokenizer"):
        (tmp_path / name).symlink_to(build / name)
    with pytest.raises(UserError, match="has no unified corpus"):
        TaskCorpus.open(tmp_path, "unified")
    write(tmp_path, "unified", SentenceStore.open(build / "store"))
    (tmp_path / "multiple_choice").symlink_to(tmp_path / "unified")
    with pytest.raises(UserError, match="holds unified examples, expected multiple_choice"):
        TaskCorpus.open(tmp_path, "multiple_choice")
    (tmp_path / "unified" / "query.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"query.bin has 5 bytes, expected \d+; build it again") as caught:
        TaskCorpus.open(tmp_path, "unified")
    assert "\n" not in str(caught.value)
    manifest = json.loads((tmp_path / "unified" / "manifest.json").read_text())
    del manifest["unit_dtype"]
    (tmp_path / "unified" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was built without an index; build the corpora again"):
        TaskCorpus.open(tmp_path, "unified")
    with pytest.raises(UserError, match='no split "test"'):
        TaskCorpus.open(build, "unified").rows("test")
