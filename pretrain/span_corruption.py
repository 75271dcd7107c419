"""T5's two objectives over plain text: span corruption and prefix language modelling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
SENTINELS = 100  # <extra_id_0> ... <extra_id_99>
MAX_SPANS = SENTINELS - 1  # the target ends with one sentinel more than there are spans


def _segments(total: int, parts: int, rng: np.random.Generator) -> IntArray:
    """Cut `total` items into `parts` non-empty runs, every cut equally likely (T5's random segmentation)."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)


def noise_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """How many tokens T5 masks in a text of `length` tokens, and in how many spans.

    Args:
        length: tokens of the text, at least 2.
        density: share of tokens that is masked.
        mean_span: tokens a span on average.

    Returns:
        (masked tokens, spans): at least one each, and at least one token kept.
    """
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_span), 1), noise, length - noise + 1, MAX_SPANS)
    return noise, spans


def corrupted_length(length: int, density: float, mean_span: float) -> int:
    """Encoder tokens that a text of `length` tokens becomes."""
    noise, spans = noise_counts(length, density, mean_span)
    return length - noise + spans


def longest_text(max_tokens: int, density: float, mean_span: float) -> int:
    """The longest text whose corrupted form has at most `max_tokens` encoder tokens."""
    length = max(max_tokens, 2)
    while corrupted_length(length + 1, density, mean_span) <= max_tokens:
        length += 1
    return length


def corrupt_spans(
    ids: NDArray[np.int32],
    rng: np.random.Generator,
    sentinel: Callable[[int], int],
    density: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[IntArray, IntArray]:
    """Mask random spans in T5's form, each placed with equal chance anywhere in the text.

    T5's own draw always keeps the first token and always masks the last: in a text short enough for one span that span is
    always the end. Ours puts the spans into gaps between kept tokens, both ends included.

    Args:
        ids: [length] token ids of the text, at least 2.
        rng: where the spans come from.
        sentinel: number of a sentinel -> its id.
        density: share of tokens that is masked.
        mean_span: tokens a span on average.

    Returns:
        (encoder ids: each span replaced by its sentinel;
        target ids: sentinel, span, sentinel, span, ..., closing sentinel).
    """
    length = len(ids)
    noise, spans = noise_counts(length, density, mean_span)
    masked = _segments(noise, spans, rng)
    before = np.cumsum(masked) - masked  # masked tokens before each span
    gaps = np.sort(rng.choice(length - noise + 1, spans, replace=False))  # kept tokens before each span
    starts = gaps + before
    marks = np.array([sentinel(i) for i in range(spans + 1)], dtype=np.int64)
    is_masked = np.zeros(length, dtype=bool)
    is_masked[np.repeat(gaps, masked) + np.arange(noise)] = True
    inputs = ids.astype(np.int64)
    inputs[starts] = marks[:spans]
    keep = ~is_masked
    keep[starts] = True
    targets = np.append(np.insert(ids[is_masked].astype(np.int64), before, marks[:spans]), marks[spans])
    return inputs[keep], targets


def split_prefix(ids: NDArray[np.int32], rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Cut a text at a random place: the encoder reads the first part, the decoder writes the second.

    Args:
        ids: [length] token ids, at least 2.
        rng: where the cut comes from; each place between two tokens is equally likely.
    """
    cut = int(rng.integers(1, len(ids)))
    return ids[:cut].astype(np.int64), ids[cut:].astype(np.int64)
