"""Batches of a backbone's training: the mixture of objectives, with a state to resume from, and their layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corpora.common.errors import UserError
from corpora.common.rng import generator
from pretrain.packed_t5 import Layout, make_layout
from pretrain.span_corruption import SENTINELS, IntArray
from pretrain.training_sources import SHORTEST_TEXT, ClozeSource, TextSource

OBJECTIVES = ("span", "prefix", "cloze")


@dataclass
class TrainBatch:
    """One step's examples, tokens end to end (N encoder, M decoder tokens), shortest example first."""

    input_ids_N: Tensor
    decoder_ids_M: Tensor
    target_ids_M: Tensor
    objective_M: Tensor  # index into OBJECTIVES
    sentinels_S: Tensor  # places of sentinels among the encoder tokens
    sentinel_targets_S: Tensor  # first masked token of each
    answers_A: Tensor  # places of the first answer token of cloze examples among the decoder tokens
    layout: Layout
    tokens: int  # encoder tokens


def make_batch(
    examples: list[tuple[int, IntArray, IntArray]], first_sentinel: int, start_id: int, device: torch.device
) -> TrainBatch:
    """Lay examples (objective, encoder ids, target ids) end to end.

    Args:
        examples: at least one.
        first_sentinel: the lowest of the 100 sentinel ids.
        start_id: what the decoder reads first.
        device: where the tensors go.
    """
    examples = sorted(examples, key=lambda example: len(example[1]))
    lengths = np.array([len(e[1]) for e in examples])
    target_lengths = np.array([len(e[2]) for e in examples])
    inputs = np.concatenate([e[1] for e in examples]).astype(np.int64)
    targets = np.concatenate([e[2] for e in examples]).astype(np.int64)
    starts = np.cumsum(target_lengths) - target_lengths
    decoder = np.empty_like(targets)
    decoder[1:] = targets[:-1]
    decoder[starts] = start_id
    objective = np.array([e[0] for e in examples])
    is_mark = (inputs >= first_sentinel) & (inputs < first_sentinel + SENTINELS)
    # Every sentinel of a target but the closing one, which ends it, stands in the encoder's input in the same order.
    opens = (targets >= first_sentinel) & (targets < first_sentinel + SENTINELS)
    opens[starts + target_lengths - 1] = False
    places, answers = np.flatnonzero(is_mark), np.flatnonzero(opens) + 1
    if len(places) != len(answers):
        raise UserError("training text holds sentinel tokens such as <extra_id_0>; remove them")

    def tensor(part: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(part)).to(device)

    return TrainBatch(
        input_ids_N=tensor(inputs),
        decoder_ids_M=tensor(decoder),
        target_ids_M=tensor(targets),
        objective_M=tensor(np.repeat(objective, target_lengths)),
        sentinels_S=tensor(places),
        sentinel_targets_S=tensor(targets[answers]),
        answers_A=tensor(starts[objective == OBJECTIVES.index("cloze")] + 1),
        layout=make_layout(lengths, target_lengths, device),
        tokens=int(lengths.sum()),
    )


@dataclass
class MixtureState:
    """Where the mixture stands; JSON-able."""

    step: int = 0
    epoch: dict[str, int] = field(default_factory=dict)
    position: dict[str, int] = field(default_factory=dict)
    credit: dict[str, float] = field(default_factory=dict)  # tokens that an objective is owed


class Mixture:
    """Draws each step's examples so that every objective has its share of the tokens of text.

    Args:
        sources: objective -> its source.
        shares: objective -> share of the tokens; they are scaled to a sum of one.
        batch_tokens: tokens of text a step.
        seed: of orders, spans and cuts.
    """

    def __init__(
        self,
        sources: dict[str, TextSource | ClozeSource],
        shares: dict[str, float],
        batch_tokens: int,
        seed: int,
    ) -> None:
        total = sum(shares.values())
        self.sources = {name: source for name, source in sources.items() if shares.get(name, 0) > 0}
        self.owed = {name: shares[name] / total * batch_tokens for name in self.sources}
        self.seed = seed
        for name, source in self.sources.items():
            if not len(source):
                raise UserError(
                    f'objective "{name}" has no text of {SHORTEST_TEXT} tokens or more to learn from'
                )

    def iterate(
        self, state: MixtureState
    ) -> Iterator[tuple[list[tuple[int, IntArray, IntArray]], MixtureState]]:
        """Endless steps from `state` on: examples and the state after them."""
        orders: dict[str, tuple[int, NDArray[np.int64]]] = {}
        while True:
            epoch, position, credit = dict(state.epoch), dict(state.position), dict(state.credit)
            drawn: list[tuple[int, IntArray, IntArray]] = []
            rng = generator(self.seed, "examples", state.step)
            while not drawn:  # one long example may use up what several steps are owed
                for name in self.sources:
                    credit[name] = credit.get(name, 0.0) + self.owed[name]
                self._draw(drawn, rng, epoch, position, credit, orders)
            state = MixtureState(state.step + 1, epoch, position, credit)
            yield drawn, state

    def _draw(
        self,
        drawn: list[tuple[int, IntArray, IntArray]],
        rng: np.random.Generator,
        epoch: dict[str, int],
        position: dict[str, int],
        credit: dict[str, float],
        orders: dict[str, tuple[int, NDArray[np.int64]]],
    ) -> None:
        """Take from each source until it is owed nothing; `epoch`, `position` and `credit` move on."""
        for name, source in self.sources.items():
            while credit[name] > 0:
                turn, place = epoch.get(name, 0), position.get(name, 0)
                if name not in orders or orders[name][0] != turn:
                    orders[name] = (turn, self._order(name, source, turn))
                number = int(orders[name][1][place])
                drawn.append((OBJECTIVES.index(name), *source.example(number, rng)))
                credit[name] -= source.cost(number)
                done = place + 1 == len(source)
                epoch[name], position[name] = (turn + 1, 0) if done else (turn, place + 1)

    def _order(self, name: str, source: TextSource | ClozeSource, epoch: int) -> NDArray[np.int64]:
        if not source.shuffled:
            return np.arange(len(source))
        return generator(self.seed, "order", name, epoch).permutation(len(source))
