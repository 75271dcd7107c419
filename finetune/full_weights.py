"""All weights of a backbone in one process: they train on a few examples and go back to what its files hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.calibrate import ItemSet, score_sets
from finetune.inputs import IntArray, Item
from finetune.memory import training_tokens
from finetune.score import Scores
from finetune.tune import TuneOptions
from pretrain.backbone import load_backbone
from pretrain.backbone_loading import stored_weights
from pretrain.batching import Count, packed_batches
from pretrain.packed_t5 import decode, encode, head, make_layout

TO_COME = 4  # times the weights: gradients, AdamW's two moments, the best step's copy
SPARE = 2.0  # a copy of the weights stays on the GPU where this many times its size is free, else it goes to the host


class FullWeights:
    """A trainable backbone in float32 on one device.

    The weights it goes back to are its files, mapped: they take no memory of their own. Beside the weights there are
    their gradients, AdamW's two moments and one copy of the best step's.
    """

    def __init__(self, name: str, device: torch.device | str, options: TuneOptions) -> None:
        """Load a backbone.

        Args:
            name: folder or hub name.
            device: where it trains.
            options: what all trials share.

        Raises:
            PPTError: as `load_backbone`.
        """
        self.options = options
        self.backbone = load_backbone(name, "float32", device)
        self.model = self.backbone.model.requires_grad_(True)
        self._parameters: dict[str, torch.nn.Parameter] = dict(self.model.named_parameters())
        self._original = stored_weights(name)
        self._kept: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    @torch.no_grad()
    def reset(self) -> None:
        """Go back to the backbone's own weights, with a new optimiser."""
        self._optimizer = None  # before the new one is made
        for name, parameter in self._parameters.items():
            parameter.grad = None
            parameter.copy_(self._original[name]())
        self._optimizer = torch.optim.AdamW(
            optimizer_groups(self._parameters.values(), self.options.ft_weight_decay),
            fused=True,  # one pass over the weights: on a CPU an update takes a third of the time
        )

    def backward(self, items: Sequence[Item], targets: Sequence[IntArray]) -> float:
        """Mean loss of a batch; the gradients are left in the weights.

        Args:
            items: B examples.
            targets: what the decoder is to say for each.
        """
        total = 0.0
        for group in packed_batches([len(item.input_ids) for item in items], self.options.batch_tokens):
            loss = self._loss([items[i] for i in group], [targets[i] for i in group]) / len(items)
            loss.backward()
            total += float(loss.detach())
        return total

    def _loss(self, items: Sequence[Item], targets: Sequence[IntArray]) -> Tensor:
        """Sum of the examples' losses, each the mean over its counted positions; nothing is padded.

        Args:
            items: examples in order of length.
            targets: of each.
        """
        device, backbone = self.device, self.backbone
        lengths_B = np.array([len(item.input_ids) for item in items])
        target_lengths_B = np.array([len(ids) for ids in targets])
        layout = make_layout(lengths_B, target_lengths_B, device)
        input_ids_N = torch.from_numpy(np.concatenate([item.input_ids for item in items]).astype(np.int64))
        decoder_ids_M = torch.from_numpy(
            np.concatenate([np.concatenate([[backbone.start_id], ids[:-1]]) for ids in targets]).astype(
                np.int64
            )
        )
        places, ids, weights = counted_positions(targets, self.options.count)
        encoded_ND = encode(self.model, input_ids_N.to(device), layout)
        decoded_MD = decode(self.model, encoded_ND, decoder_ids_M.to(device), layout)
        logits = head(self.model, decoded_MD[places.to(device)]).float()
        losses = F.cross_entropy(logits, ids.to(device), reduction="none")
        return (losses * weights.to(device)).sum()

    def update(self, learning_rate: float) -> None:
        """One step of AdamW, the gradient clipped before; weight decay spares vectors (the layer norms)."""
        assert self._optimizer is not None
        if self.options.clip:
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.options.clip, foreach=True)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def score(self, items: ItemSet) -> Scores:
        """Scores of examples by the weights as they are."""
        (scores,) = score_sets(
            self.backbone,
            [items],
            None,
            batch_tokens=self.options.batch_tokens,
            length_normalised=self.options.length_normalised,
        )
        return scores

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the weights as they are, in the place of what was remembered before."""
        if not self._kept:
            where = _room(self.device, self._parameters.values())
            self._kept = {
                name: torch.empty_like(p, device=where, requires_grad=False)
                for name, p in self._parameters.items()
            }
        for name, parameter in self._parameters.items():
            self._kept[name].copy_(parameter)

    @torch.no_grad()
    def recall(self) -> None:
        """Go back to what `keep` remembered, to be scored: training begins with `reset`."""
        self._optimizer = None
        for name, parameter in self._parameters.items():
            parameter.copy_(self._kept[name])

    def end(self) -> None:
        """Nobody else holds them."""

    def fit_gpu(self) -> None:
        """Choose the tokens of a micro-batch by the memory that is free."""
        size = sum(p.numel() * p.element_size() for p in self._parameters.values())
        free, _ = torch.cuda.mem_get_info(self.device)
        tokens = training_tokens(self.backbone, free - TO_COME * size)
        self.options = replace(self.options, batch_tokens=tokens)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.backbone.embedding_device


def optimizer_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """What AdamW is made with: weight decay on matrices, none on vectors.

    Args:
        parameters: whole, or sharded by ZeRO 3.
        weight_decay: of the matrices, decoupled.
    """
    every = list(parameters)
    vectors = [p for p in every if len(getattr(p, "ds_shape", p.shape)) <= 1]
    matrices = [p for p in every if len(getattr(p, "ds_shape", p.shape)) > 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def counted_positions(targets: Sequence[IntArray], count: Count) -> tuple[Tensor, Tensor, Tensor]:
    """Which target positions the loss counts, where targets lie end to end.

    Args:
        targets: `<extra_id_0> label ...` of each example.
        count: `label`: all but the constant first sentinel; `all`: every one.

    Returns:
        [A] places among all positions, [A] ids to be said there, [A] weights: those of an example add up to 1.
    """
    skipped = 0 if count == "all" else 1
    places, weights, start = [], [], 0
    for ids in targets:
        counted = len(ids) - skipped
        places.append(np.arange(start + skipped, start + len(ids)))
        weights.append(np.full(counted, 1.0 / counted, dtype=np.float32))
        start += len(ids)
    said = np.concatenate([ids[skipped:] for ids in targets]).astype(np.int64)
    return (
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(said),
        torch.from_numpy(np.concatenate(weights)),
    )


def _room(device: torch.device, parameters: Iterable[Tensor]) -> torch.device:
    """Where a copy of the weights has room: beside them, or in the host's memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        size = sum(p.numel() * p.element_size() for p in parameters)
        return device if free > SPARE * size else torch.device("cpu")
    return device
