from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import words as module
from corpora.words import HAN_CHARACTER, THAI_CHARACTER, WORD, Words, find_words, ngrams

LETTERS = "abcXYZ éÀ中文あか, .\n1٢กา和שלوم-ｅ"


def as_list(words: Words) -> list[str]:
    ends = words.starts_T1[1:]
    return ["".join(map(chr, words.codes_C[a:b])) for a, b in zip(words.starts_T1[:-1], ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's 1,000 hats!", ["the", "cat", "s", "1", "000", "hats"]),
        ("機器學習很好。", list("機器學習很好")),
        ("今日はＧＰＵの日", [*"今日は", "gpu", *"の日"]),
        ("ｶﾅ", ["カ", "ナ"]),
        ("ภาษาไทย", list("ภาษาไทย")),
        ("한국어 문장", ["한국어", "문장"]),
        ("", []),
        ("... !?", []),
    ],
)
def test_words_are_folded_and_scripts_without_spaces_give_one_a_character(
    text: str, words: list[str]
) -> None:
    assert as_list(find_words(text)) == words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Caf\u00e9 NOIR", "cafe\u0301 noir"),  # composed and not
        ("\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f", "\u0645\u062d\u0645\u062f"),  # Arabic vowels
        ("\u0645\u062d\u0640\u0640\u0645\u062f", "\u0645\u062d\u0645\u062f"),  # stretched
        ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),  # Hebrew points
        (
            "\u200f\u05e9\u05dc\u05d5\u05dd\u200e world",
            "\u05e9\u05dc\u05d5\u05dd world",
        ),  # marks of direction
        ("soft\u00adhyphen", "softhyphen"),
    ],
)
def test_what_a_writer_may_leave_out_does_not_count(one: str, other: str) -> None:
    assert find_words(one).hashes_T.tolist() == find_words(other).hashes_T.tolist()


def test_a_character_weighs_the_share_of_a_word_that_it_stands_for() -> None:
    assert find_words("cat 猫 แมว").weights_T.tolist() == [WORD, HAN_CHARACTER, *[THAI_CHARACTER] * 3]
    assert find_words("中" * 16).count == 10.0


@given(st.text(alphabet=LETTERS, max_size=120), st.integers(1, 13))
@settings(max_examples=200)
def test_a_run_is_the_shortest_that_weighs_n_words_and_its_hash_depends_on_its_words_alone(
    text: str, n: int
) -> None:
    words = find_words(text)
    grams = ngrams(words, n)
    weights = words.weights_T.tolist()
    wanted = []
    for start in range(len(weights)):
        for end in range(start + 1, len(weights) + 1):
            if sum(weights[start:end]) >= n * WORD:
                wanted.append((start, end))
                break
    assert list(zip(grams.starts_W.tolist(), grams.ends_W.tolist(), strict=True)) == wanted
    runs = [tuple(as_list(words)[a:b]) for a, b in wanted]
    assert (
        len(set(runs))
        == len(set(grams.hashes_W.tolist()))
        == len(set(zip(runs, grams.hashes_W.tolist(), strict=True)))
    )


@given(st.text(alphabet=LETTERS, max_size=60), st.text(alphabet=LETTERS, max_size=60))
def test_the_words_of_a_text_are_found_in_a_longer_one(before: str, text: str) -> None:
    alone, within = find_words(text), find_words(f"{before}. {text}")
    at = len(within) - len(alone)
    assert within.hashes_T[at:].tolist() == alone.hashes_T.tolist()
    assert within.same(at, len(within), alone, 0)
    assert (
        ngrams(alone, 3).hashes_W.tolist()
        == ngrams(within, 3).hashes_W[len(ngrams(within, 3)) - len(ngrams(alone, 3)) :].tolist()
    )


def test_long_texts_are_worked_on_in_slices_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Words, und Wörter, 和文字 и слова; " * 500
    whole = find_words(text)
    grams = ngrams(whole, 13)
    monkeypatch.setattr(module, "SLICE", 97)
    sliced = find_words(text)
    for name in ("codes_C", "starts_T1", "hashes_T", "weights_T"):
        assert np.array_equal(getattr(whole, name), getattr(sliced, name))
    assert np.array_equal(ngrams(sliced, 13).hashes_W, grams.hashes_W)


def test_the_numbers_are_those_of_every_machine() -> None:
    # Stored with a corpus: change them, and corpora of before cannot be compared with those of after.
    assert find_words("Stored numbers: 数字.").hashes_T.tolist() == [
        3400552617964519923,
        3162311075360680606,
        10912339680173341481,
        12986635102932467757,
    ]


def test_words_that_differ_in_one_letter_are_told_apart_even_where_hashes_agree() -> None:
    one, other = find_words("abc def ghi"), find_words("abc dxf ghi")
    same_hashes = Words(other.codes_C, other.starts_T1, one.hashes_T, other.weights_T)
    assert one.same(0, 3, find_words("abc def ghi"), 0)
    assert not one.same(0, 3, same_hashes, 0)
    assert not one.same(0, 3, find_words("abc def"), 0)


@given(
    st.lists(st.text(alphabet=LETTERS, max_size=40), max_size=12),
    st.integers(1, 4),
    st.sampled_from([11, 60, 1 << 16]),
)
@settings(max_examples=200)
def test_texts_that_are_worked_on_together_give_what_each_gives_alone(
    texts: list[str], n: int, size: int
) -> None:
    alone = [find_words(text) for text in texts]
    whole = module.SLICE
    try:
        module.SLICE = size
        together = module.find_all_words(texts)
        module.find_ngrams(together, n)
    finally:
        module.SLICE = whole
    for one, other in zip(alone, together, strict=True):
        if size > 40:  # a longer text is cut at the end of a slice
            assert as_list(one) == as_list(other)
            for name in ("starts_T1", "hashes_T", "weights_T"):
                assert np.array_equal(getattr(one, name), getattr(other, name))
        fresh = ngrams(Words(other.codes_C, other.starts_T1, other.hashes_T, other.weights_T), n)
        for name in ("starts_W", "ends_W", "hashes_W"):
            assert np.array_equal(getattr(fresh, name), getattr(ngrams(other, n), name))
