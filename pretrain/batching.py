"""Batches of examples: padding, masks, targets, groups of similar length under a token budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from corpora.formats import Example
from corpora.rendering import Rendered, ends

IntArray = npt.NDArray[np.int32]
Count = Literal["label", "all"]  # which target positions the loss counts


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What B examples ask of the decoder; T is the longest target.

    Attributes:
        prompt_ids_B: [B] int64, which prompt of the bank each example uses.
        decoder_ids_BT: [B, T] int64: the start id, then the target ids moved by one.
        target_ids_BT: [B, T] int64.
        target_weights_BT: [B, T] float32, 1 where the loss counts, else 0.
        labels_B: [B] int64, -1 where examples came without labels.
        example_weights_B: [B] float32, weight of each example in the loss.
    """

    prompt_ids_B: torch.Tensor
    decoder_ids_BT: torch.Tensor
    target_ids_BT: torch.Tensor
    target_weights_BT: torch.Tensor
    labels_B: torch.Tensor
    example_weights_B: torch.Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Batch(Targets):
    """B examples, padded; L is the longest input.

    Attributes:
        input_ids_BL: [B, L] int64 encoder ids, padded at the end.
        mask_BL: [B, L] bool, true where an id stands.
    """

    input_ids_BL: torch.Tensor
    mask_BL: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class PackedBatch(Targets):
    """B examples end to end, each after its own prompt; N encoder tokens, M of them text.

    Attributes:
        text_ids_M: [M] int64 ids of all texts.
        text_places_M: [M] int64 place of each among the N tokens.
        prompt_places_BP: [B * P] int64 places of the prompts' tokens.
        lengths_B: [B] tokens of each example, its prompt included; on the host.
    """

    text_ids_M: torch.Tensor
    text_places_M: torch.Tensor
    prompt_places_BP: torch.Tensor
    lengths_B: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.lengths_B.sum())


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
    if not len(rendered):
        raise ValueError("a batch needs at least one example")
    input_ids_BL, mask_BL = _padded(rendered.input_ids, rendered.offsets, pad_id)
    targets = _targets(
        rendered, np.asarray(prompt_ids), *end_to_end(target_ids), weights, pad_id, start_id, count
    )
    return Batch(input_ids_BL=torch.from_numpy(input_ids_BL), mask_BL=torch.from_numpy(mask_BL), **targets)


def pack_flat(
    rendered: Rendered,
    prompt_len: int,
    prompt_ids: npt.NDArray[np.integer],
    target_ids: IntArray,
    target_offsets: npt.NDArray[np.int64],
    example_weights: npt.NDArray[np.floating],
    pad_id: int,
    start_id: int,
    count: Count = "label",
) -> PackedBatch:
    """Put examples that lie end to end into one batch as they lie, each after places left free for its prompt.

    Args:
        rendered: the examples.
        prompt_len: places left free.
        prompt_ids: [B].
        target_ids: all targets end to end, each as `collate` takes it.
        target_offsets: [B + 1] where each starts.
        example_weights: [B].
        pad_id, start_id, count: as `collate`.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: as `collate`.
    """
    if not len(rendered):
        raise ValueError("a batch needs at least one example")
    texts_B = np.diff(rendered.offsets)
    lengths_B = texts_B + prompt_len
    starts_B = ends(lengths_B)[:-1]
    number_M = np.repeat(np.arange(len(texts_B)), texts_B)
    return PackedBatch(
        text_ids_M=torch.from_numpy(rendered.input_ids.astype(np.int64)),
        text_places_M=torch.from_numpy(np.arange(len(number_M)) + prompt_len * (number_M + 1)),
        prompt_places_BP=torch.from_numpy((starts_B[:, None] + np.arange(prompt_len)).ravel()),
        lengths_B=lengths_B,
        **_targets(
            rendered, prompt_ids, target_ids, target_offsets, example_weights, pad_id, start_id, count
        ),
    )


def _targets(
    rendered: Rendered,
    prompt_ids: npt.NDArray[np.integer],
    target_ids: IntArray,
    target_offsets: npt.NDArray[np.int64],
    example_weights: npt.NDArray[np.floating],
    pad_id: int,
    start_id: int,
    count: Count,
) -> dict[str, torch.Tensor]:
    """The fields of `Targets`."""
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
    return {
        "prompt_ids_B": torch.from_numpy(prompt_ids.astype(np.int64)),
        "decoder_ids_BT": torch.from_numpy(decoder_ids_BT),
        "target_ids_BT": torch.from_numpy(target_ids_BT),
        "target_weights_BT": torch.from_numpy(weights_BT),
        "labels_B": torch.from_numpy(rendered.labels),
        "example_weights_B": torch.from_numpy(example_weights.astype(np.float32)),
    }


def example_losses(logits_BTV: torch.Tensor, batch: Targets) -> torch.Tensor:
    """Cross entropy of each example, [B] float32: the mean over its counted target positions.

    Args:
        logits_BTV: of all of the batch's T positions, or of the last ones, where the first do not count.
        batch: the batch.
    """
    positions = logits_BTV.shape[1]
    target_ids_BT = batch.target_ids_BT[:, -positions:]
    weights_BT = batch.target_weights_BT[:, -positions:]
    losses_BT = torch.nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), target_ids_BT.flatten(), reduction="none"
    ).view_as(weights_BT)
    return (losses_BT * weights_BT).sum(1) / weights_BT.sum(1)


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


def packed_batches(
    lengths: Sequence[int] | npt.NDArray[np.integer], batch_tokens: int, multiple: int = 1
) -> list[npt.NDArray[np.int64]]:
    """Cut examples into micro-batches of similar length and about equally many tokens, none beyond a budget.

    Args:
        lengths: encoder tokens of each of N examples, the prompt included.
        batch_tokens: encoder tokens of a micro-batch; one longer example makes a micro-batch of its own.
        multiple: how many micro-batches there are divides by this, as far as there are examples enough.

    Returns:
        Arrays of example numbers, together 0..N-1, shortest first; the same for the same lengths.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(lengths, kind="stable")
    stops = np.cumsum(lengths[order])
    count = -(-int(stops[-1]) // batch_tokens)
    while True:
        count = min(-(-count // multiple) * multiple, len(order))
        cuts = np.searchsorted(stops, np.arange(1, count) * stops[-1] / count, side="right")
        # Each micro-batch has an example: cuts rise by one at least, and leave one for each that follows.
        cuts = np.maximum.accumulate(np.maximum(cuts, 1) - np.arange(count - 1)) + np.arange(count - 1)
        cuts = np.minimum(cuts, len(order) - np.arange(count - 1, 0, -1))
        parts = np.split(order, cuts)
        if count == len(order) or all(
            len(part) == 1 or int(lengths[part].sum()) <= batch_tokens for part in parts
        ):
            return parts
        count += 1
