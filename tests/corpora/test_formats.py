"""Tests of corpora/formats.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.common.errors import UserError
from corpora.formats import (
    ENCODER_TOKENS,
    FORMATS,
    LABEL_WORDS,
    QUERY_TOKENS,
    Verbalizer,
    caps,
    label_words,
    option_caps,
    pattern,
    render_pretraining,
)
from corpora.tokenizer import LETTERS, Tokenizer

LONG = np.arange(1000, 1600, dtype=np.uint16)

# method.md, "The four formats": options -> query tokens, option tokens
CAPS = {2: (400, 50), 3: (400, 50), 4: (400, 50), 5: (400, 40), 6: (300, 40), 7: (250, 30), 8: (200, 30)}
CAPS |= {9: (200, 30), **dict.fromkeys(range(10, 17), (150, 20))}


@pytest.mark.parametrize("n", CAPS)
def test_unified_caps_are_those_of_the_method(n: int) -> None:
    assert option_caps(n) == CAPS[n]


@pytest.mark.parametrize("n", [1, 17])
def test_numbers_of_options_outside_2_to_16_are_refused(n: int) -> None:
    with pytest.raises(UserError, match=f"{n} options; expected 2 to 16"):
        option_caps(n)


@pytest.mark.defect(5)
@pytest.mark.parametrize(
    ("format", "n_options"),
    [
        ("sentence_pair", 1),
        ("multiple_choice", 6),
        ("single_text", 0),
        *(("unified", n) for n in range(2, 17)),
    ],
)
def test_the_longest_example_fits_and_ends_with_its_template(
    tokenizer: Tokenizer, format: str, n_options: int
) -> None:
    example = render_pretraining(tokenizer, format, LONG, [LONG] * n_options, 0, prompt_len=100)
    assert len(example.input_ids) <= ENCODER_TOKENS[format] - 100
    assert (example.input_ids == tokenizer.sentinel(0)).sum() == 1
    form = pattern(format)
    if form.has_options:
        empty = form.render(tokenizer, {"query": []}, [[]] * n_options, max_tokens=999)
        assert example.input_ids[example.input_ids < 1000].tolist() == empty.tolist()
        assert example.input_ids[-1] == tokenizer.sentinel(0)


@st.composite
def pretraining_examples(draw: st.DrawFn) -> tuple[str, int, list[int]]:
    """A format, its number of options, and the lengths of its query and options: short, or far too long."""
    format = draw(st.sampled_from(FORMATS))
    n = {"sentence_pair": 1, "multiple_choice": 6, "single_text": 0}.get(format)
    n = draw(st.integers(2, 16)) if n is None else n
    length = st.one_of(st.integers(1, 30), st.integers(1, 1500))
    return format, n, draw(st.lists(length, min_size=n + 1, max_size=n + 1))


@pytest.mark.defect(5)
@settings(max_examples=300, deadline=None)
@given(made=pretraining_examples(), language=st.sampled_from(["en", "zh"]), data=st.data())
def test_no_length_and_no_budget_cuts_a_template_a_letter_or_the_mask(
    tokenizer: Tokenizer, made: tuple[str, int, list[int]], language: str, data: st.DataObject
) -> None:
    format, n, lengths = made
    form = pattern(format, language)
    segments = [100_000 * (k + 1) + np.arange(length) for k, length in enumerate(lengths)]
    fields = {"query": [], "text": [], "first": [], "second": []}
    bare = form.render(tokenizer, fields, [[]] * n if form.has_options else [], max_tokens=999).tolist()
    room = ENCODER_TOKENS[format] - len(bare) - len(segments)  # one token of each segment at least
    prompt_len = data.draw(st.one_of(st.integers(0, room), st.just(100), st.just(room)))
    found = render_pretraining(
        tokenizer, format, segments[0], segments[1:], 0, prompt_len, language
    ).input_ids
    assert len(found) <= ENCODER_TOKENS[format] - prompt_len
    assert found[found < 100_000].tolist() == bare
    assert bare.count(tokenizer.sentinel(0)) == 1
    query_cap, option_cap = caps(format, n)
    for k, segment in enumerate(segments):
        kept = found[found // 100_000 == k + 1]
        cap = (option_cap if k else query_cap) or len(segment)
        assert 1 <= len(kept) <= cap and kept.tolist() == segment[: len(kept)].tolist()
    order = (found // 100_000)[found >= 100_000]
    assert (np.diff(order) >= 0).all()  # query first, options in the order of their letters


def test_six_full_options_and_the_query_fill_1024_with_t5(real_data: Path) -> None:
    t5 = Tokenizer.load(real_data / "tokenizers" / "t5_spiece.model")
    example = render_pretraining(t5, "multiple_choice", LONG, [LONG] * 6, 0, prompt_len=100)
    assert len(example.input_ids) + 100 == 1024
    assert (np.isin(example.input_ids, LONG)).sum() >= QUERY_TOKENS + 6 * 86
    for n in range(2, 17):
        query, option = option_caps(n)
        example = render_pretraining(t5, "unified", LONG, [LONG] * n, 0, prompt_len=100)
        assert len(example.input_ids) == query + n * (option + 3) + 7 <= 668


def test_sides_of_a_pair_are_cut_to_equal_lengths(tokenizer: Tokenizer) -> None:
    example = render_pretraining(tokenizer, "sentence_pair", LONG, [LONG], 2, prompt_len=100)
    mask = int(np.flatnonzero(example.input_ids == tokenizer.sentinel(0))[0])
    assert (mask, len(example.input_ids), example.label) == (206, 412, 2)


def test_a_single_text_is_cut_before_the_mask(tokenizer: Tokenizer) -> None:
    example = render_pretraining(tokenizer, "single_text", LONG, [], 1, prompt_len=20)
    assert example.input_ids.tolist() == [*LONG[:267].tolist(), tokenizer.sentinel(0)]


def test_a_prompt_that_leaves_no_room_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no room"):
        render_pretraining(tokenizer, "single_text", LONG, [], 0, prompt_len=367)


def test_letters_of_a_verbalizer_are_the_bare_pieces_of_the_options(tokenizer: Tokenizer) -> None:
    found = Verbalizer.letters(tokenizer, 16)
    assert found.words == LETTERS
    assert found.ids == tuple((index,) for index in tokenizer.letters)
    with pytest.raises(UserError, match="17 labels"):
        Verbalizer.letters(tokenizer, 17)


def test_targets_are_sentinel_word_and_closing_sentinel(tokenizer: Tokenizer) -> None:
    found = Verbalizer(tokenizer, ("no", "terrible"))
    first, last = tokenizer.sentinel(0), tokenizer.sentinel(1)
    assert len(found) == 2
    for label, word in enumerate(found.words):
        ids = list(tokenizer.word_ids(word))
        assert found.target_ids(label, closing=True).tolist() == [first, *ids, last]
        assert found.target_ids(label, closing=False).tolist() == [first, *ids]


def test_equal_and_unknown_label_words_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match='"yes" and " yes" have the same ids'):
        Verbalizer(tokenizer, ("yes", " yes"))
    with pytest.raises(UserError, match='label word "漢" is unknown'):
        Verbalizer(tokenizer, ("yes", "漢"))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_a_pattern_and_words_in_both_languages(format: str, language: str) -> None:
    assert pattern(format, language).text.count("<X>") == 1
    assert len(label_words(format, language)) == len(LABEL_WORDS[format])


def test_an_unknown_format_or_language_names_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "unified"'):
        pattern("unifed")
    with pytest.raises(UserError, match="expected one of en, zh"):
        label_words("unified", "klingon")
