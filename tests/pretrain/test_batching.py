"""Facts about batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpora.formats import Example
from pretrain.batching import collate, example_losses, micro_batches


def test_padding_masks_and_targets_lie_where_they_should() -> None:
    examples = [Example(np.array([5, 6, 7], np.int32), 1), Example(np.array([8], np.int32), 0)]
    targets = [np.array([99, 3, 4], np.int32), np.array([99, 2], np.int32)]
    batch = collate(examples, [4, 2], targets, pad_id=0, start_id=0)
    assert batch.input_ids_BL.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask_BL.tolist() == [[True] * 3, [True, False, False]]
    assert batch.prompt_ids_B.tolist() == [4, 2]
    assert batch.decoder_ids_BT.tolist() == [[0, 99, 3], [0, 99, 0]]
    assert batch.target_ids_BT.tolist() == [[99, 3, 4], [99, 2, 0]]
    assert batch.target_weights_BT.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch.labels_B.tolist() == [1, 0]
    assert collate(examples, [0, 0], targets, 0, 0, count="all").target_weights_BT.tolist() == [
        [1, 1, 1], [1, 1, 0],
    ]  # fmt: skip


def test_loss_is_the_mean_over_counted_positions_of_each_example() -> None:
    logits_BTV = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    ids = [np.array([5], np.int32)] * 2
    targets = [np.array([49, 3, 4], np.int32), np.array([49, 2], np.int32)]
    logs = logits_BTV.log_softmax(-1)
    losses_B = example_losses(logits_BTV, collate(ids, [0, 0], targets, 0, 0))
    assert losses_B.tolist() == pytest.approx(
        [-float(logs[0, 1, 3] + logs[0, 2, 4]) / 2, -float(logs[1, 1, 2])]
    )


def test_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        collate([], [], [], 0, 0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 1000))
def test_micro_batches_hold_every_example_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = micro_batches(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget
    assert groups == micro_batches(lengths, budget)
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest)
