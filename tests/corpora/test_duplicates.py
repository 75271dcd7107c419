from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import duplicates as module
from corpora.common.errors import UserError
from corpora.duplicates import (
    LEADERS,
    SHINGLE,
    SIGNATURE,
    Duplicates,
    Pair,
    bands,
    document_hash,
    find_duplicates,
    signature,
)
from corpora.words import find_words, ngrams

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]


def made_up(rng: random.Random, words: int = 300, han: bool = False) -> list[str]:
    return rng.choices(HAN if han else WORDS, k=words)


def changed(rng: random.Random, words: list[str], share: float) -> list[str]:
    pool = HAN if words[0] in HAN else WORDS
    return [rng.choice(pool) if rng.random() < share else word for word in words]


def joined(words: list[str]) -> str:
    return ("" if words[0] in HAN else " ").join(words)


def of(texts: list[str], similarity: float | None = 0.8) -> Duplicates:
    hashes = np.stack([document_hash(text) for text in texts])
    signatures = np.stack([signature(text) for text in texts]) if similarity is not None else None
    return find_duplicates(hashes, signatures, similarity or 0.8)


def jaccard(one: str, other: str) -> float:
    a, b = (set(ngrams(find_words(text), SHINGLE).hashes_W.tolist()) for text in (one, other))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The cat sat. On the mat!", "the  cat sat\non THE mat"),
        ("你好，世界。", "你好 世界"),
        ("שָׁלוֹם עולם", "\u200fשלום עולם\u200e"),
        ("ＡＢＣ１２３", "abc123"),
    ],
)
def test_case_punctuation_and_spacing_make_no_other_document(one: str, other: str) -> None:
    assert document_hash(one).tolist() == document_hash(other).tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the cat sat", "the cats at"),
        ("a b", "b a"),
        ("你好世界", "你好世间"),
        ("!!!", "???"),
        ("", "a"),
        ("♥", ""),
    ],
)
def test_other_words_make_another_document(one: str, other: str) -> None:
    assert document_hash(one).tolist() != document_hash(other).tolist()


def test_the_first_of_equal_documents_stays() -> None:
    found = of(["A b c", "x", "a, b, c.", "y", "X", "a b c"], None)
    assert found.keep_D.tolist() == [True, True, False, True, False, False]
    assert found.counts == {"exact duplicates": 3}
    assert found.examples["exact duplicates"] == [Pair(0, 2, 1.0), Pair(1, 4, 1.0), Pair(0, 5, 1.0)]


def test_nothing_is_found_where_nothing_is() -> None:
    assert of(["one only"]).keep_D.tolist() == [True]
    none = find_duplicates(np.empty((0, 2), np.uint64), np.empty((0, SIGNATURE), np.uint32))
    assert none.keep_D.tolist() == [] and set(none.counts.values()) == {0}


@pytest.mark.parametrize("han", [False, True], ids=["words", "han"])
def test_planted_near_duplicates_are_found_and_others_stay(han: bool) -> None:
    rng = random.Random(1)
    originals = [made_up(rng, han=han) for _ in range(150)]
    copies = [changed(rng, words, rng.choice([0.0, 0.002, 0.005, 0.03, 0.05, 0.2])) for words in originals]
    texts = [joined(words) for words in originals + copies]
    found = of(texts)
    true = np.array([jaccard(a, b) for a, b in zip(texts[:150], texts[150:], strict=True)])
    dropped = ~found.keep_D[150:]
    assert found.keep_D[:150].all(), "an original is like no other"
    assert dropped[true >= 0.9].mean() > 0.97 and (true >= 0.9).sum() > 40
    assert dropped[true < 0.65].mean() < 0.03 and (true < 0.65).sum() > 40


def test_signatures_estimate_the_share_of_shingles_in_common() -> None:
    rng = random.Random(2)
    one = made_up(rng, 2000)
    errors = []
    for share in (0.01, 0.03, 0.1, 0.3):
        for _ in range(10):
            other = changed(rng, one, share)
            estimate = (signature(joined(one)) == signature(joined(other))).mean()
            errors.append(estimate - jaccard(joined(one), joined(other)))
    # The standard error is sqrt(s (1 - s) / 128), at most 0.044.
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.06


def test_signatures_are_those_of_every_machine() -> None:
    # Stored with a corpus: change them, and parts of before cannot be compared with those of after.
    text = "One two three four five six seven eight nine ten. 数字"
    assert document_hash(text).tolist() == [15335926198502719793, 16484764760722311462]
    assert signature(text)[:4].tolist() == [72482459, 3231589232, 3233947086, 349676890]
    assert signature(text).shape == (SIGNATURE,) and signature(text).dtype == np.uint32


def test_documents_shorter_than_a_shingle_are_like_their_equals_only() -> None:
    texts = ["one two", "one three", "One two!", "", "猫", "猫。", "ก", "."]
    assert of(texts).keep_D.tolist() == [True, True, False, True, True, False, True, True]


def test_whatever_is_linked_is_one_kind_and_its_first_stays() -> None:
    rng = random.Random(3)
    chain = [made_up(rng, 400)]
    for _ in range(6):
        chain.append(changed(rng, chain[-1], 0.008))
    order = [5, 2, 6, 0, 3, 1, 4]
    found = of([joined(chain[k]) for k in order])
    assert found.keep_D.tolist() == [True] + [False] * 6
    assert {pair.kept for pair in found.examples["near duplicates"]} == {0}


def signatures_of(kinds: list[list[float]], rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Signatures that agree with the first of their kind in the share given, shuffled; and the kind of each."""
    rows, kind_of = [], []
    for kind, shares in enumerate(kinds):
        first = rng.integers(0, 2**32, SIGNATURE, dtype=np.uint32)
        for share in [1.0, *shares]:
            row = rng.integers(0, 2**32, SIGNATURE, dtype=np.uint32)
            same = rng.permutation(SIGNATURE) < round(share * SIGNATURE)
            rows.append(np.where(same, first, row))
            kind_of.append(kind)
    order = rng.permutation(len(rows))
    return np.stack(rows)[order], [kind_of[k] for k in order]


@given(
    st.lists(st.lists(st.sampled_from([0.3, 0.9, 0.97, 1.0]), max_size=4), min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_result_is_that_of_comparing_every_pair(kinds: list[list[float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    signatures, _ = signatures_of(kinds, rng)
    count = len(signatures)
    hashes = np.stack([np.arange(count), np.arange(count)], 1).astype(np.uint64)
    found = find_duplicates(hashes, signatures, 0.8)
    root = list(range(count))

    def find(k: int) -> int:
        while root[k] != k:
            k = root[k]
        return k

    number, rows = bands(0.8)
    for a in range(count):
        for b in range(a):
            equal = signatures[a] == signatures[b]
            share_band = any(equal[k * rows : (k + 1) * rows].all() for k in range(number))
            if share_band and equal.mean() >= 0.8:
                first, second = sorted((find(a), find(b)))
                root[second] = first
    assert found.keep_D.tolist() == [find(k) == k for k in range(count)]


def test_blocks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    signatures, _ = signatures_of([[0.9, 0.95, 0.5]] * 30, rng)
    hashes = rng.integers(0, 40, (len(signatures), 1)).repeat(2, axis=1).astype(np.uint64)
    whole = find_duplicates(hashes, signatures, 0.8)
    monkeypatch.setattr(module, "PAIRS", 3)
    again = find_duplicates(hashes, signatures, 0.8)
    assert again.keep_D.tolist() == whole.keep_D.tolist() and again.examples == whole.examples


def test_many_documents_that_share_a_band_and_nothing_else_are_not_compared_each_with_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    count, (_, rows) = 2000, bands(0.8)
    signatures = rng.integers(0, 2**32, (count, SIGNATURE), dtype=np.uint32)
    signatures[:, :rows] = 7
    compared = 0
    agreement = module._agreement

    def counted(signatures_DH: np.ndarray, a_P: np.ndarray, b_P: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(a_P)
        return agreement(signatures_DH, a_P, b_P)

    monkeypatch.setattr(module, "_agreement", counted)
    hashes = np.arange(2 * count, dtype=np.uint64).reshape(count, 2)
    assert find_duplicates(hashes, signatures, 0.8).keep_D.all()
    assert count <= compared <= LEADERS * count


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_find_a_pair_as_similar_as_asked_for_nine_times_in_ten(similarity: float) -> None:
    count, rows = bands(similarity)
    assert count * rows <= SIGNATURE
    assert 1 - (1 - similarity**rows) ** count >= 0.9
    if rows < SIGNATURE:
        assert 1 - (1 - similarity ** (rows + 1)) ** (SIGNATURE // (rows + 1)) < 0.9


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    module._minhash.cache_clear()
    with pytest.raises(UserError, match=r"rensa.*pip install 'prompt-pretraining\[quality\]'"):
        signature("Ä")
    assert len(document_hash("Ä")) == 2, "exact duplicates need no package"
    module._minhash.cache_clear()
