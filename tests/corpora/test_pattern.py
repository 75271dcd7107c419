"""Tests of corpora/pattern.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.common.errors import UserError
from corpora.pattern import Pattern, shortened
from corpora.tokenizer import Tokenizer

CHOICE = "{query} ? {options} ? The correct one is <X>"


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def run(value: int, length: int) -> np.ndarray:
    """A segment that can be told from all others."""
    return np.full(length, 50_000 + value, np.int32)


def test_a_choice_has_bare_letters_dots_and_question_marks(tokenizer: Tokenizer) -> None:
    found = Pattern.parse(CHOICE).render(tokenizer, {"query": ids(7)}, [ids(8), ids(9, 9)], max_tokens=50)
    ask, dot = tokenizer.glue("?"), tokenizer.glue(".")
    a, b = tokenizer.letters[:2]
    said = tokenizer.encode(["The correct one is"])[0].tolist()
    expected = [7, ask, a, dot, 8, dot, b, dot, 9, 9, dot, ask, *said, tokenizer.sentinel(0)]
    assert found.tolist() == expected and found.dtype == np.int32


def test_text_of_a_pattern_is_tokenised_as_a_run(tokenizer: Tokenizer) -> None:
    form = Pattern.parse("question: {q} ? <X> . {p}")
    found = form.render(tokenizer, {"q": ids(7), "p": ids(8)}, max_tokens=50)
    said = tokenizer.encode(["question:"])[0].tolist()
    x, ask, dot = tokenizer.sentinel(0), tokenizer.glue("?"), tokenizer.glue(".")
    assert found.tolist() == [*said, 7, ask, x, dot, 8]
    assert form.fields == ("q", "p") and not form.has_options and Pattern.parse(CHOICE).has_options


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{a} {b}", "0 masks"),
        ("{a} <X> <X>", "2 masks"),
        ("{a}<X>", "must stand alone"),
        ("{a}. <X>", "must stand alone"),
        ("{a} {a} <X>", "more than once"),
        ("{options} {options} <X>", "more than once"),
        ("{a b} <X>", "must stand alone"),
    ],
)
def test_a_wrong_pattern_is_refused(text: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        Pattern.parse(text)


def test_missing_fields_and_wrong_numbers_of_options_are_refused(tokenizer: Tokenizer) -> None:
    form = Pattern.parse(CHOICE)
    with pytest.raises(UserError, match='needs the field "query"'):
        form.render(tokenizer, {"quary": ids(1)}, [ids(2)], max_tokens=50)
    for options in ([], [ids(1)] * 17):
        with pytest.raises(UserError, match=f"{len(options)} options"):
            form.render(tokenizer, {"query": ids(1)}, options, max_tokens=99)


def test_ids_of_a_16_bit_store_do_not_overflow(tokenizer: Tokenizer) -> None:
    found = Pattern.parse("{a} <X>").render(tokenizer, {"a": np.array([65_535], np.uint16)}, max_tokens=9)
    assert found.tolist() == [65_535, tokenizer.sentinel(0)]


@pytest.mark.defect(5)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cutting_keeps_template_letters_mask_and_heads(tokenizer: Tokenizer, data: st.DataObject) -> None:
    form = Pattern.parse("{first} ; {second} ? {options} ? The correct one is <X>")
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=3, max_size=18))
    segments = [np.arange(length, dtype=np.int32) + 1000 * (k + 1) for k, length in enumerate(lengths)]
    fields, options = dict(zip(("first", "second"), segments, strict=False)), segments[2:]
    fixed = form.fixed_tokens(tokenizer, len(options))
    max_tokens = data.draw(st.integers(fixed + len(lengths), fixed + sum(lengths) + 5))
    shorten = data.draw(st.sampled_from([(), ("first",), ("second", "first"), ("absent",)]))
    found = form.render(tokenizer, fields, options, max_tokens=max_tokens, shorten=shorten)

    assert len(found) == min(max_tokens, fixed + sum(lengths))
    template = form.render(tokenizer, {"first": [], "second": []}, [[]] * len(options), max_tokens=999)
    assert found[found < 1000].tolist() == template.tolist()
    kept = []
    for k, segment in enumerate(segments):
        part = found[(found >= 1000 * (k + 1)) & (found < 1000 * (k + 2))]
        assert len(part) >= 1 and part.tolist() == segment[: len(part)].tolist()
        kept.append(len(part))
    assert all(letter in found for letter in tokenizer.letters[: len(options)])
    assert (found == tokenizer.sentinel(0)).sum() == 1
    if not shorten:  # nothing is cut below the length that another cut segment keeps
        cut = [k for k in range(len(kept)) if kept[k] < lengths[k]]
        assert all(kept[k] >= max(kept) - 1 for k in cut)


@pytest.mark.defect(5)
def test_fields_to_shorten_give_way_first(tokenizer: Tokenizer) -> None:
    form = Pattern.parse("{question} <X> {passage}")
    fields = {"question": run(0, 20), "passage": run(1, 15)}
    for max_tokens, kept in ((30, (20, 9)), (22, (20, 1)), (11, (9, 1))):
        found = form.render(tokenizer, fields, max_tokens=max_tokens, shorten=("passage",))
        assert tuple((found == 50_000 + k).sum() for k in range(2)) == kept


def test_no_room_for_the_texts_is_an_error(tokenizer: Tokenizer) -> None:
    form = Pattern.parse("{a} <X> {b}")
    assert len(form.render(tokenizer, {"a": run(0, 9), "b": run(1, 9)}, max_tokens=3)) == 3
    with pytest.raises(UserError, match="a limit of 2 leaves no room"):
        form.render(tokenizer, {"a": run(0, 9), "b": run(1, 9)}, max_tokens=2)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    share=st.floats(0, 1),
    first=st.lists(st.integers(0, 19), max_size=3, unique=True),
)
def test_shortened_lengths_fill_the_room_exactly(lengths: list[int], share: float, first: list[int]) -> None:
    least = sum(1 for length in lengths if length)
    room = least + int(share * (sum(lengths) - least))
    kept = shortened(lengths, room, [index for index in first if index < len(lengths)])
    assert sum(kept) == min(room, sum(lengths))
    assert all(min(1, old) <= new <= old for old, new in zip(lengths, kept, strict=True))
