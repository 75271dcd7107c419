from __future__ import annotations

from pathlib import Path

import pytest

from corpora.common.errors import UserError
from corpora.common.files import read_json, write_json
from corpora.formats import CHOICE_FORMATS, FORMATS
from corpora.show import PROMPT_LEN, describe
from corpora.store import SentenceStore
from corpora.task_corpus import TaskCorpus
from corpora.tokenizer import Tokenizer


@pytest.mark.parametrize("format", FORMATS)
def test_the_parts_of_an_example_are_what_the_backbone_reads(
    build_dir: Path, tokenizer: Tokenizer, format: str
) -> None:
    corpus, store = TaskCorpus.open(build_dir, format), SentenceStore.open(build_dir / "store")
    for example in describe(build_dir, n=8, format=format)["formats"][format]["examples"]:
        query, options = corpus.units(example["row"])
        segments = [part for part in example["parts"] if part["role"] in ("query", "option")]
        assert [part["role"] for part in segments] == ["query"] + ["option"] * len(options)
        for part, unit in zip(segments, (query, *options), strict=True):
            ids = store.unit_ids(unit)
            assert part["tokens"] + part["cut"] == len(ids)
            assert part["text"] == tokenizer.decode(ids[: part["tokens"]].tolist())
            assert part["document"] == store.doc_of_unit[unit]
            assert part["place"] == store.place(part["document"])
        rendered = corpus.render(example["row"], tokenizer, PROMPT_LEN).input_ids
        assert example["tokens"] == len(rendered)
        spelt = tokenizer.decode(rendered.tolist()).replace("<extra_id_0>", "<X>")
        assert example["text"].replace(" ", "") == spelt.replace(" ", "")
        assert [part["text"] for part in example["parts"]].count("<X>") == 1


def test_a_segment_that_was_cut_says_by_how_many_tokens(
    build_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corpora.show.PROMPT_LEN", 512 - 12)  # twelve tokens are left for a pair
    (example,) = describe(build_dir, n=1, format="sentence_pair")["formats"]["sentence_pair"]["examples"]
    segments = [part for part in example["parts"] if part["role"] != "mask"]
    assert sum(part["tokens"] for part in segments) == 11 and all(part["cut"] > 0 for part in segments)


@pytest.mark.parametrize("format", CHOICE_FORMATS)
def test_the_right_option_and_it_alone_is_the_adjacent_one(build_dir: Path, format: str) -> None:
    store = SentenceStore.open(build_dir / "store")
    corpus = TaskCorpus.open(build_dir, format)
    for example in describe(build_dir, n=10, format=format)["formats"][format]["examples"]:
        parts = [part for part in example["parts"] if part["role"] == "option"]
        query, units = corpus.units(example["row"])
        for part, unit in zip(parts, units, strict=True):
            assert part["right"] == (part["letter"] == example["label"]) == (part["kind"] == "adjacent")
            assert (part["kind"] == "other document") == (part["document"] != example["parts"][0]["document"])
            if part["kind"] != "other document":
                assert part["distance"] == store.position[unit] - store.position[query]


@pytest.mark.parametrize(
    ("label", "kind"), [("yes", "adjacent"), ("maybe", "same document"), ("no", "other document")]
)
def test_the_second_of_a_pair_stands_to_the_first_as_the_label_says(
    build_dir: Path, label: str, kind: str
) -> None:
    shown = describe(build_dir, n=6, format="sentence_pair", label=label)["formats"]
    assert list(shown) == ["sentence_pair"] and len(shown["sentence_pair"]["examples"]) == 6
    for example in shown["sentence_pair"]["examples"]:
        assert example["label"] == label
        assert [part["kind"] for part in example["parts"] if part["role"] == "option"] == [kind]


def test_a_label_is_shown_in_every_format_that_has_it(build_dir: Path) -> None:
    shown = describe(build_dir, n=3, label="F")["formats"]
    assert list(shown) == ["multiple_choice", "unified"]
    assert {example["label"] for about in shown.values() for example in about["examples"]} == {"F"}


def test_label_counts_are_those_of_the_manifests(build_dir: Path) -> None:
    shown = describe(build_dir, n=0)
    assert list(shown["formats"]) == list(FORMATS)
    for name, about in shown["formats"].items():
        manifest = read_json(build_dir / name / "manifest.json")
        assert about["labels"] == manifest["labels"]
        assert list(about["labels"]["train"]) == manifest["label_words"]


def test_the_seed_chooses_the_examples(build_dir: Path) -> None:
    assert (
        describe(build_dir, n=3, seed=1)
        == describe(build_dir, n=3, seed=1)
        != describe(build_dir, n=3, seed=2)
    )
    every = describe(build_dir, n=100_000, format="single_text")["formats"]["single_text"]
    assert len(every["examples"]) == sum(
        every["labels"]["train"].values()
    )  # more than there are is all of them


def test_what_is_not_there_is_an_error_that_names_the_nearest(build_dir: Path) -> None:
    with pytest.raises(UserError, match='no format "unify"; did you mean "unified"'):
        describe(build_dir, format="unify")
    with pytest.raises(UserError, match='no label "mayb" in sentence_pair; did you mean "maybe"'):
        describe(build_dir, format="sentence_pair", label="mayb")


def test_a_folder_that_is_no_build_or_not_finished_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no build"):
        describe(tmp_path)
    write_json(tmp_path / "manifest.json", {"kind": "build", "format_version": 1})
    with pytest.raises(UserError, match="not finished"):
        describe(tmp_path)
