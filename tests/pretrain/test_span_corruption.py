"""Span corruption and prefix LM have T5's form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.common.rng import generator
from pretrain.span_corruption import (
    corrupt_spans,
    corrupted_length,
    longest_text,
    noise_counts,
    split_prefix,
)

SIZE = 1100


def sentinel(i):
    return SIZE - 1 - i


def rebuild(inputs, targets):
    """Put the spans of `targets` back into the places that `inputs` marks."""
    spans, current = {}, None
    for token in targets.tolist():
        if token >= SIZE - 100:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    out = []
    for token in inputs.tolist():
        out.extend(spans[token] if token >= SIZE - 100 else [token])
    return out


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 600), st.floats(0.05, 0.6), st.floats(1.0, 6.0), st.integers(0, 2**31))
def test_input_and_target_together_hold_the_text(length, density, mean_span, seed):
    ids = generator(seed, "text").integers(3, 1000, length).astype(np.int32)
    inputs, targets = corrupt_spans(ids, generator(seed, "spans"), sentinel, density, mean_span)
    noise, spans = noise_counts(length, density, mean_span)
    assert rebuild(inputs, targets) == ids.tolist()
    assert len(inputs) == length - noise + spans == corrupted_length(length, density, mean_span)
    assert len(targets) == noise + spans + 1
    marks = [t for t in targets.tolist() if t >= SIZE - 100]
    assert marks == [sentinel(i) for i in range(spans + 1)]  # in order, closed by one more
    assert [t for t in inputs.tolist() if t >= SIZE - 100] == marks[:-1]
    assert targets[-1] == sentinel(spans)


def test_the_share_masked_is_the_density_and_spans_have_the_mean_length():
    assert noise_counts(1000, 0.15, 3.0) == (150, 50)
    assert noise_counts(500, 0.5, 1.0) == (250, 99)  # never more spans than sentinels


def test_the_longest_text_just_fits():
    length = longest_text(512, 0.15, 3.0)
    assert length > 512
    assert corrupted_length(length, 0.15, 3.0) <= 512 < corrupted_length(length + 1, 0.15, 3.0)


def test_every_place_of_the_text_can_be_masked():
    ids = np.arange(3, 23, dtype=np.int32)
    seen = set()
    for seed in range(300):
        _, targets = corrupt_spans(ids, generator(seed, "x"), sentinel)
        seen |= {t for t in targets.tolist() if t < 1000}
    assert seen == set(ids.tolist())


@pytest.mark.parametrize("length", [2, 3, 50])
def test_prefix_and_continuation_make_the_text(length):
    ids = np.arange(length, dtype=np.int32)
    cuts = set()
    for seed in range(200):
        prefix, rest = split_prefix(ids, generator(seed, "cut"))
        assert np.concatenate([prefix, rest]).tolist() == ids.tolist()
        cuts.add(len(prefix))
    assert min(cuts) == 1 and max(cuts) == length - 1
