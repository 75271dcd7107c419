from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import stats
from corpora.common.errors import UserError
from corpora.common.files import write_json
from corpora.formats import FORMATS, caps
from corpora.show import PROMPT_LEN
from corpora.stats import BARS, collect, counts_of, histogram
from corpora.store import SentenceStore
from corpora.task_corpus import TaskCorpus


@given(st.lists(st.integers(0, 500), min_size=1, max_size=200))
def test_a_histogram_counts_every_value_once_and_its_quantiles_are_values_of_that_rank(
    values: list[int],
) -> None:
    found = histogram(np.bincount(values))
    assert sum(found["bars"]) + found["longer"] == found["n"] == len(values)
    assert len(found["bars"]) <= BARS
    width = found["width"]
    for number, bar in enumerate(found["bars"]):
        assert bar == sum(number * width <= value < (number + 1) * width for value in values)
    ordered = sorted(values)
    for q, value in found["quantiles"].items():
        assert value == ordered[math.ceil(float(q) * len(values)) - 1]
    assert found["mean"] == round(float(np.mean(values)), 2) and found["max"] == max(values)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=50))
def test_with_a_top_nothing_is_beyond_the_bars(values: list[int]) -> None:
    found = histogram(np.bincount(values), top=99)
    assert found["longer"] == 0 and sum(found["bars"]) == len(values)


def test_without_values_there_is_no_more_to_say() -> None:
    assert histogram(np.zeros(4, np.int64)) == {"n": 0}


def test_units_and_documents_are_all_counted_whatever_the_piece(
    build_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SentenceStore.open(build_dir / "store")
    found = collect(build_dir)["store"]
    assert found["unit_tokens"] == histogram(np.bincount(store.lengths))
    assert found["document_units"] == histogram(np.bincount(np.diff(store.doc_offsets)))
    monkeypatch.setattr(stats, "PIECE", 7)
    assert collect(build_dir)["store"] == found


def test_lengths_beyond_what_is_counted_leave_the_mean_right(
    monkeypatch: pytest.MonkeyPatch, build_dir: Path
) -> None:
    whole = collect(build_dir)["store"]["unit_tokens"]
    monkeypatch.setattr(stats, "TOP", 15)
    cut = collect(build_dir)["store"]["unit_tokens"]
    assert cut["max"] == 15 < whole["max"] and cut["mean"] == whole["mean"] and cut["n"] == whole["n"]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_counted_of_a_format_is_what_its_examples_are(build_dir: Path, format: str) -> None:
    corpus = TaskCorpus.open(build_dir, format)
    store, found = corpus.store, collect(build_dir)["formats"][format]
    rows = np.arange(len(corpus))
    labels = corpus.label(rows)
    units = [corpus.units(row) for row in rows.tolist()]
    lengths = [len(corpus.render(row, corpus.tokenizer, PROMPT_LEN).input_ids) for row in rows.tolist()]
    assert found["looked_at"] == len(rows) == sum(found["examples"].values())
    assert found["lengths"] == histogram(np.bincount(lengths), top=found["budget"])
    assert found["full"] == sum(length == found["budget"] for length in lengths)
    for split in ("train", "validation"):
        counts = np.bincount(labels[corpus.rows(split)], minlength=len(corpus.label_words)).tolist()
        assert [found["labels"][split][word] for word in corpus.label_words] == counts
    query_cap = [caps(format, len(options))[0] for _, options in units]
    if any(query_cap):
        longer = sum(store.lengths[query] > cap for (query, _), cap in zip(units, query_cap, strict=True))
        assert found["cut"]["queries"] == {"of": len(rows), "longer": longer}
    kinds: dict[str, dict[str, int]] = {}
    for (query, options), label in zip(units, labels.tolist(), strict=True):
        for place, option in enumerate(options):
            name = corpus.label_words[label]
            if format != "sentence_pair":
                name = "right option" if place == label else "wrong options"
            apart = abs(int(store.position[query]) - int(store.position[option]))
            kind = "adjacent" if apart == 1 else "same document"
            if store.doc_of_unit[query] != store.doc_of_unit[option]:
                kind = "other document"
            counted = kinds.setdefault(name, {"adjacent": 0, "same document": 0, "other document": 0})
            counted[kind] += 1
    assert found.get("kinds", {}) == kinds
    if format == "unified":
        numbers = [len(options) for _, options in units]
        assert found["n_options"] == {str(n): numbers.count(n) for n in sorted(set(numbers))}


def test_many_examples_are_sampled_the_same_way_each_time(
    build_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(build_dir)
    monkeypatch.setattr(stats, "ROWS", 200)
    found = collect(build_dir)
    assert found == collect(build_dir)
    for name, about in found["formats"].items():
        assert about["looked_at"] == min(200, sum(about["examples"].values()))
        assert about["labels"] == whole["formats"][name]["labels"]  # of all examples, sampled or not
        mean, all_of_them = about["lengths"]["mean"], whole["formats"][name]["lengths"]["mean"]
        assert abs(mean - all_of_them) < 0.1 * all_of_them


def test_every_dictionary_of_counts_in_a_manifest_is_found_and_nothing_else() -> None:
    manifest = {
        "dropped": {"not JSON": 3, "no text": 1},
        "dropped_places": {"not JSON": ["a.jsonl line 7"]},
        "quality": {"repaired": 5, "strict": True, "language": "en"},
        "decontamination": {"documents": 7, "sets": {"sst2": {"rows": 90, "found": [3, 8]}}},
        "duplicates": {"counts": {"exact duplicates": 2}},
        "tokenizer": {"size": 32_100},
        "versions": {"numpy": 2},
        "units": 9,
    }
    assert counts_of(manifest) == {
        "dropped": {"not JSON": 3, "no text": 1},
        "quality": {"repaired": 5},
        "decontamination": {"rows of sst2 found": 2},
    }


def test_a_folder_that_is_no_build_or_not_finished_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no build"):
        collect(tmp_path)
    write_json(tmp_path / "manifest.json", {"kind": "build", "format_version": 1})
    with pytest.raises(UserError, match="not finished"):
        collect(tmp_path)
