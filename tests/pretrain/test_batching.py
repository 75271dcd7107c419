"""Batches: padding, targets, what the loss counts, and groups under a token budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.formats import Example
from corpora.rendering import Rendered
from pretrain.batching import collate, end_to_end, example_losses, micro_batches, pack_flat, packed_batches

FIRST, LAST = 99, 98  # <extra_id_0>, <extra_id_1>


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_a_batch_is_padded_at_the_end_and_its_decoder_input_is_the_target_moved_by_one() -> None:
    examples = [Example(ids(5, FIRST, 7), 2), Example(ids(5, 6, 7, 8, FIRST), 0)]
    batch = collate(examples, [1, 0], [ids(FIRST, 20), ids(FIRST, 21, 22)], pad_id=0, start_id=4)
    assert batch.input_ids_BL.tolist() == [[5, FIRST, 7, 0, 0], [5, 6, 7, 8, FIRST]]
    assert batch.mask_BL.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.decoder_ids_BT.tolist() == [[4, FIRST, 0], [4, FIRST, 21]]
    assert batch.target_ids_BT.tolist() == [[FIRST, 20, 0], [FIRST, 21, 22]]
    assert batch.target_weights_BT.tolist() == [[0, 1, 0], [0, 1, 1]]
    assert batch.labels_B.tolist() == [2, 0] and batch.prompt_ids_B.tolist() == [1, 0]
    assert batch.example_weights_B.tolist() == [1, 1]


def test_a_token_that_equals_the_padding_stands_where_it_is_no_padding() -> None:
    batch = collate([ids(0, 5), ids(5, 5, 0)], [0, 0], [ids(FIRST, 0)] * 2, pad_id=0, start_id=0)
    assert batch.mask_BL.tolist() == [[True, True, False], [True, True, True]]
    assert batch.target_weights_BT.tolist() == [[0, 1], [0, 1]]


def test_counting_all_positions_averages_the_sentinels_in_as_the_released_code_does() -> None:
    target = ids(FIRST, 20, LAST)
    batch = collate([ids(5)], [0], [target], 0, 0, count="all")
    logits = torch.randn(1, 3, 100, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(target).long())
    assert batch.target_weights_BT.tolist() == [[1, 1, 1]]
    torch.testing.assert_close(example_losses(logits, batch)[0], wanted)


def test_the_label_loss_is_the_mean_over_the_labels_own_tokens() -> None:
    batch = collate([ids(5), ids(6)], [0, 0], [ids(FIRST, 20), ids(FIRST, 20, 21, 22)], 0, 0)
    logits = torch.randn(2, 4, 100, generator=torch.Generator().manual_seed(0))
    log_probs = logits.log_softmax(-1)
    wanted = [-log_probs[0, 1, 20], -(log_probs[1, 1, 20] + log_probs[1, 2, 21] + log_probs[1, 3, 22]) / 3]
    torch.testing.assert_close(example_losses(logits, batch), torch.stack(wanted))


def test_a_batch_of_nothing_or_a_target_without_a_label_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        collate([], [], [], 0, 0)
    with pytest.raises(ValueError, match="count label it needs 2"):
        collate([ids(5)], [0], [ids(FIRST)], 0, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200))
def test_micro_batches_hold_every_example_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = micro_batches(lengths, budget)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[number] for number in group)
        assert len(group) == 1 or longest * len(group) <= budget
    edges = [(min(lengths[n] for n in group), max(lengths[n] for n in group)) for group in groups]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(edges))
    assert micro_batches(np.array(lengths, dtype=np.int32), budget) == groups


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.integers(1, 200), st.integers(1, 4))
def test_packed_batches_are_even_and_within_the_budget(
    lengths: list[int], budget: int, multiple: int
) -> None:
    batches = packed_batches(lengths, budget, multiple)
    assert np.concatenate(batches).tolist() == np.argsort(lengths, kind="stable").tolist()
    sizes = [sum(lengths[number] for number in batch) for batch in batches]
    assert all(len(batch) == 1 or size <= budget for batch, size in zip(batches, sizes, strict=True))
    assert all(len(batch) for batch in batches)
    assert len(batches) % multiple == 0 or len(batches) == len(lengths)
    # Even: no two differ by more than the examples at their edges, unless there are hardly enough examples.
    if len(lengths) > 4 * len(batches) * max(lengths):
        assert max(sizes) - min(sizes) <= 2 * max(lengths)


def test_packed_examples_lie_end_to_end_each_after_room_for_its_prompt() -> None:
    rendered = Rendered(*end_to_end([ids(5, 6), ids(7, 8, 9)]), np.array([1, 0]))
    targets = end_to_end([ids(FIRST, 20), ids(FIRST, 21)])
    batch = pack_flat(rendered, 3, np.array([1, 0]), *targets, np.ones(2), pad_id=0, start_id=4)
    assert batch.lengths_B.tolist() == [5, 6] and batch.tokens == 11
    assert batch.text_ids_M.tolist() == [5, 6, 7, 8, 9]
    assert batch.text_places_M.tolist() == [3, 4, 8, 9, 10]
    assert batch.prompt_places_BP.tolist() == [0, 1, 2, 5, 6, 7]
    assert batch.decoder_ids_BT.tolist() == [[4, FIRST], [4, FIRST]]
