"""Tests of corpora/rendering.py: many examples at once are what they are one by one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.common.errors import UserError
from corpora.formats import ENCODER_TOKENS, FORMATS, render_pretraining
from corpora.pattern import shortened
from corpora.rendering import Rendered, Renderer, ends, shortened_rows, spread
from corpora.tokenizer import Tokenizer

SIZES = {"sentence_pair": (1, 1), "multiple_choice": (1, 16), "single_text": (0, 0), "unified": (2, 16)}
TOKENS = np.arange(3_000, dtype=np.uint16) + 1_000  # every place of the store tells itself apart


@cache
def renderer(format: str, language: str, tokenizer: Tokenizer) -> Renderer:
    return Renderer(format, language, tokenizer)


@st.composite
def batches(draw: st.DrawFn, format: str) -> list[list[tuple[int, int]]]:
    """Examples as lists of texts, the query first; a text is where it starts in `TOKENS` and its length."""
    longest = draw(st.sampled_from([3, 40, 120, 600]))
    examples = []
    for _ in range(draw(st.integers(1, 8))):
        n = draw(st.integers(*SIZES[format]))
        lengths = draw(st.lists(st.integers(0, longest), min_size=n + 1, max_size=n + 1))
        places = draw(st.lists(st.floats(0, 1), min_size=n + 1, max_size=n + 1))
        examples.append(
            [(round(p * (len(TOKENS) - one)), one) for p, one in zip(places, lengths, strict=True)]
        )
    return examples


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_many_examples_render_as_one_by_one(
    tokenizer: Tokenizer, format: str, language: str, data: st.DataObject
) -> None:
    examples = data.draw(batches(format))
    # A prompt of 100 as in the paper; others so long that nearly nothing, or nothing at all, is left for the texts.
    prompt_len = data.draw(st.one_of(st.just(100), st.integers(1, ENCODER_TOKENS[format])))
    expected, faults = [], []
    for texts in examples:
        ids = [TOKENS[start : start + length] for start, length in texts]
        try:
            expected.append(render_pretraining(tokenizer, format, ids[0], ids[1:], 0, prompt_len, language))
        except UserError as error:
            faults.append(str(error))
    one = renderer(format, language, tokenizer)
    starts, lengths = np.array([text for texts in examples for text in texts], np.int64).T
    segments = one.segments(starts, lengths, np.array([len(texts) - 1 for texts in examples]))
    if faults:
        with pytest.raises(UserError) as caught:
            one.render(TOKENS, segments, prompt_len)
        assert str(caught.value) == faults[0]
        return
    ids, offsets = one.render(TOKENS, segments, prompt_len)
    assert ids.dtype == np.int32
    assert offsets.tolist() == ends([len(example.input_ids) for example in expected]).tolist()
    assert ids.tolist() == np.concatenate([example.input_ids for example in expected]).tolist()
    assert one.lengths(segments, prompt_len).tolist() == np.diff(offsets).tolist()


@given(
    table=st.lists(
        st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=17), st.floats(0, 1)), min_size=1
    )
)
def test_rows_are_shortened_as_one_example_is(table: list[tuple[list[int], float]]) -> None:
    table = [(lengths, share) for lengths, share in table if sum(lengths) > sum(map(bool, lengths))]
    if not table:
        return
    rooms = []
    for lengths, share in table:
        least = sum(map(bool, lengths))
        rooms.append(least + int(share * (sum(lengths) - 1 - least)))
    rows = np.zeros((len(table), max(len(lengths) for lengths, _ in table)), np.int64)
    for row, (lengths, _) in zip(rows, table, strict=True):
        row[: len(lengths)] = lengths
    found = shortened_rows(rows, np.array(rooms))
    for row, (lengths, _), room in zip(found.tolist(), table, rooms, strict=True):
        assert row[: len(lengths)] == shortened(lengths, room)
        assert not any(row[len(lengths) :])


@pytest.mark.parametrize(
    ("format", "n"), [("unified", 1), ("unified", 17), ("sentence_pair", 2), ("single_text", 1)]
)
def test_an_example_with_options_that_its_format_has_not_is_refused(
    tokenizer: Tokenizer, format: str, n: int
) -> None:
    one = Renderer(format, "en", tokenizer)
    with pytest.raises(UserError, match=rf"{format} example with {n} options; expected \d+ to \d+"):
        one.segments(np.zeros(n + 1, np.int64), np.ones(n + 1, np.int64), np.array([n]))


def test_examples_of_several_batches_come_in_the_order_asked_for() -> None:
    def rendered(*examples: tuple[list[int], int]) -> Rendered:
        ids = np.concatenate([np.array(one, np.int32) for one, _ in examples])
        labels = np.array([label for _, label in examples], np.int64)
        return Rendered(ids, ends([len(one) for one, _ in examples]), labels)

    parts = [rendered(([1, 2, 3], 0), ([4], 1)), rendered(([5, 6], 2))]
    found = Rendered.in_order(parts, [np.array([2, 0]), np.array([1])])
    assert found.input_ids.tolist() == [4, 5, 6, 1, 2, 3] and found.offsets.tolist() == [0, 1, 3, 6]
    assert found.labels.tolist() == [1, 2, 0] and len(found) == 3
    assert Rendered.in_order(parts[:1], [np.array([0, 1])]) is parts[0]
    assert Rendered.in_order(parts[:1], [np.array([1, 0])]).input_ids.tolist() == [4, 1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 5)), max_size=9))
def test_spread_counts_up_from_each_start(runs: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(runs, np.int64).reshape(-1, 2).T
    assert spread(starts, lengths).tolist() == [start + k for start, n in runs for k in range(n)]
    assert ends(lengths).tolist() == [0, *np.cumsum(lengths).tolist()]
