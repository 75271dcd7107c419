"""Tests of corpora/word_encoder.py."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import word_encoder
from corpora.documents import read_documents
from corpora.word_encoder import WordEncoder, splits_at_spaces

SPELT = {"": [], "a": [1], "bb": [2, 2], "c": [3], "déjà": [4, 5, 6], "\u00a0": []}


def spell(texts: list[str]) -> list[list[int]]:
    """A model of a few words."""
    return [SPELT[text] for text in texts]


def cut(encoder: WordEncoder, texts: list[str]) -> list[list[int]]:
    """Each text's ids."""
    ids, starts = encoder.encode(texts)
    return [ids[start:end].tolist() for start, end in itertools.pairwise(starts.tolist())]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(sorted(SPELT))), max_size=8))
def test_a_texts_ids_are_those_of_its_words(texts: list[list[str]]) -> None:
    encoder = WordEncoder(spell)
    expected = [[i for word in text for i in SPELT[word]] for text in texts]
    joined = [" ".join(text) for text in texts]
    assert cut(encoder, joined) == expected
    assert cut(encoder, joined) == expected  # from memory


def test_a_word_reaches_the_model_once() -> None:
    seen: list[str] = []

    def encode(new: list[str]) -> list[list[int]]:
        seen.extend(new)
        return spell(new)

    encoder = WordEncoder(encode)
    cut(encoder, ["a bb a", "bb"])
    cut(encoder, ["c a bb"])
    assert sorted(seen) == ["a", "bb", "c"]


@pytest.mark.parametrize("limit", ["KEPT_WORDS", "KEPT_IDS"])
def test_what_is_forgotten_is_encoded_again(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_encoder, limit, 2)
    encoder = WordEncoder(spell)
    for text, ids in [("a bb c", [1, 2, 2, 3]), ("c a", [3, 1]), ("bb", [2, 2]), ("a a", [1, 1])]:
        assert cut(encoder, [text]) == [ids]


def test_a_trained_model_gives_whole_texts_the_same_ids(text_file: Path, tokenizer_dir: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "spiece.model"))
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    assert splits_at_spaces(pieces, model.encode)
    texts = [
        *text_file.read_text(encoding="utf-8").splitlines(),
        "  two  spaces,\tand a tab ",
        "\u3000wide\u00a0space",
        "",
    ]
    assert cut(WordEncoder(model.encode), texts) == model.encode(texts)


def test_a_model_with_pieces_across_spaces_is_told(train_model: Callable[..., Path]) -> None:
    across = train_model(split_by_whitespace=False, remove_extra_whitespaces=False)
    model = sentencepiece.SentencePieceProcessor(model_file=str(across))
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    assert not splits_at_spaces(pieces, model.encode)


def test_a_model_that_keeps_extra_spaces_is_told() -> None:
    assert not splits_at_spaces(["▁a", "▁b"], lambda texts: [[9] * text.count(" ") + [1] for text in texts])


def test_real_text_differs_from_whole_encoding_only_where_two_cuts_score_the_same(real_data: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(real_data / "tokenizers" / "t5_spiece.model"))
    documents = itertools.islice(read_documents([real_data / "text" / "en" / "bbc_news.jsonl.gz"]), 300)
    texts = [line for document in documents for line in document.text.split("\n")]
    for one, other in zip(cut(WordEncoder(model.encode), texts), model.encode(texts), strict=True):
        if one != other:
            scores = [sum(map(model.get_score, ids)) for ids in (one, other)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-3), json.dumps([one, other])
