"""Batches of examples: padding, masks, targets, groups of similar length under a token budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from corpora.formats import Example
from corpora.rendering import Rendered, ends

IntArray = npt.NDArray[np.int32]
Count = Literal["label", "all"]  # which target positions the loss counts


@dataclass(frozen=True)
class Batch:
    """B examples as tensors; L is the longest input, T the longest target.

    Attributes:
        input_ids_BL: [B, L] int64 encoder ids, padded at the end.
        mask_BL: [B, L] bool, true where an id stands.
        prompt_ids_B: [B] int64, which prompt of the bank each example uses.
        decoder_ids_BT: [B, T] int64: the start id, then the target ids moved by one.
        target_ids_BT: [B, T] int64.
        target_weights_BT: [B, T] float32, 1 where the loss counts, else 0.
        labels_B: [B] int64, -1 where examples came without labels.
        example_weights_B: [B] float32, weight of each example in the loss.
    """

    input_ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    prompt_ids_B: torch.Tensor
    decoder_ids_BT: torch.Tensor
    target_ids_BT: torch.Tensor
    target_weights_BT: torch.Tensor
    labels_B: torch.Tensor
    example_weights_B: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        moved = {field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)}
        return Batch(**moved)


def pad_inputs(inputs: Sequence[IntArray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Put encoder inputs of several lengths into one tensor.

    Args:
        inputs: B arrays of ids, at least one.
        pad_id: id of padding.

    Returns:
        [B, L] int64 ids, padded at the end, and [B, L] bool, true where an id stands; on the CPU.

    Raises:
        ValueError: no inputs.
    """
    if not inputs:
        raise ValueError("a batch needs at least one example")
    ids, mask = _padded(*end_to_end(inputs), pad_id)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def end_to_end(arrays: Sequence[IntArray]) -> tuple[IntArray, npt.NDArray[np.int64]]:
    """N arrays as one, int32, and where each starts and the last ends, int64 [N + 1]."""
    return np.concatenate([np.empty(0, np.int32), *arrays]), ends([len(array) for array in arrays])


def _padded(
    ids: IntArray, offsets: npt.NDArray[np.int64], pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """N arrays that lie end to end as rows of one table, int64 [N, longest], and true where an id stands."""
    lengths = np.diff(offsets)
    mask = np.arange(lengths.max()) < lengths[:, None]
    table = np.full(mask.shape, pad_id, np.int64)
    table[mask] = ids
    return table, mask


def collate(
    examples: Sequence[Example | IntArray],
    prompt_ids: Sequence[int],
    target_ids: Sequence[IntArray],
    pad_id: int,
    start_id: int,
    count: Count = "label",
    example_weights: Sequence[float] | None = None,
) -> Batch:
    """Put examples into one padded batch.

    Args:
        examples: B rendered examples, or their bare input ids.
        prompt_ids: B numbers of prompts.
        target_ids: B arrays `<extra_id_0> label...`; with the closing `<extra_id_1>` only where `count` is `all`.
        pad_id: id of padding.
        start_id: the decoder's first input.
        count: `label`: the loss counts what follows the constant first sentinel; `all`: every target position, as
            the released code does.
        example_weights: B weights; None: 1 each.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: no examples, or a target in which no position counts.
    """
    inputs = [example.input_ids if isinstance(example, Example) else example for example in examples]
    labels = [example.label if isinstance(example, Example) else -1 for example in examples]
    rendered = Rendered(*end_to_end(inputs), np.array(labels, np.int64))
    weights = np.ones(len(labels)) if example_weights is None else np.asarray(example_weights)
    targets = end_to_end(target_ids)
    return collate_flat(rendered, np.asarray(prompt_ids), *targets, weights, pad_id, start_id, count)


def collate_flat(
    rendered: Rendered,
    prompt_ids: npt.NDArray[np.integer],
    target_ids: IntArray,
    target_offsets: npt.NDArray[np.int64],
    example_weights: npt.NDArray[np.floating],
    pad_id: int,
    start_id: int,
    count: Count = "label",
) -> Batch:
    """`collate` for B examples that lie end to end, without a loop over them.

    Args:
        rendered: the examples.
        prompt_ids: [B].
        target_ids: all targets end to end.
        target_offsets: [B + 1] where each starts.
        example_weights: [B].
        pad_id, start_id, count: as `collate`.

    Raises:
        ValueError: as `collate`.
    """
    if not len(rendered):
        raise ValueError("a batch needs at least one example")
    input_ids_BL, mask_BL = _padded(rendered.input_ids, rendered.offsets, pad_id)
    shortest, counted_from = int(np.diff(target_offsets).min()), 0 if count == "all" else 1
    if shortest <= counted_from:
        raise ValueError(
            f"a target has {shortest} ids; with count {count} it needs {counted_from + 1} or more"
        )
    target_ids_BT, there_BT = _padded(target_ids, target_offsets, pad_id)
    decoder_ids_BT = np.full_like(target_ids_BT, start_id)
    decoder_ids_BT[:, 1:] = np.where(there_BT[:, 1:], target_ids_BT[:, :-1], pad_id)
    weights_BT = there_BT.astype(np.float32)
    weights_BT[:, :counted_from] = 0.0
    return Batch(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        mask_BL=torch.from_numpy(mask_BL),
        prompt_ids_B=torch.from_numpy(prompt_ids.astype(np.int64)),
        decoder_ids_BT=torch.from_numpy(decoder_ids_BT),
        target_ids_BT=torch.from_numpy(target_ids_BT),
        target_weights_BT=torch.from_numpy(weights_BT),
        labels_B=torch.from_numpy(rendered.labels),
        example_weights_B=torch.from_numpy(example_weights.astype(np.float32)),
    )


def example_losses(logits_BTV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross entropy of each example, [B] float32: the mean over its counted target positions."""
    losses_BT = torch.nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), batch.target_ids_BT.flatten(), reduction="none"
    ).view_as(batch.target_weights_BT)
    return (losses_BT * batch.target_weights_BT).sum(1) / batch.target_weights_BT.sum(1)


def micro_batches(lengths: Sequence[int] | npt.NDArray[np.integer], batch_tokens: int) -> list[list[int]]:
    """Cut examples into groups of similar length whose padded size stays within a budget.

    Args:
        lengths: encoder tokens of each of N examples, the prompt included.
        batch_tokens: encoder tokens of a group, padding included; one longer example makes a group of its own.

    Returns:
        Groups of example numbers, together 0..N-1, shortest first; the same for the same lengths.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    groups: list[list[int]] = []
    for number in order.tolist():
        # Lengths ascend, so the newcomer is the longest of its group.
        if groups and (len(groups[-1]) + 1) * int(lengths[number]) <= batch_tokens:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
