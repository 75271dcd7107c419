"""Prompt groups of a run: their examples, which of them each step takes and which process computes what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.formats import CHOICE_FORMATS, Verbalizer
from corpora.rendering import Rendered, ends, spread
from corpora.task_corpus import SPLITS, TaskCorpus
from corpora.tokenizer import Tokenizer
from pretrain.batching import PackedBatch, end_to_end, pack_flat, packed_batches
from pretrain.settings import PretrainSettings

Rows = NDArray[np.int64]


@dataclass
class Group:
    """One prompt and the corpus it learns from.

    Attributes:
        index: which of the K prompts.
        name: its format.
        corpus: its task corpus.
        verbalizer: label words, in label order.
        train_rows: the N rows to learn from.
        held_rows: [M] rows to be judged by, the same at every evaluation.
    """

    index: int
    name: str
    corpus: TaskCorpus
    verbalizer: Verbalizer
    train_rows: range
    held_rows: Rows
    _order: tuple[int, NDArray[np.unsignedinteger]] | None = field(default=None, repr=False)

    @property
    def one_token_words(self) -> bool:
        """Whether one decoder position tells all labels apart."""
        return all(len(ids) == 1 for ids in self.verbalizer.ids)

    def n_labels(self, rows: Rows) -> NDArray[np.int64]:
        """How many labels each row can have: its options in a choice, [B]."""
        if self.name not in CHOICE_FORMATS:
            return np.full(len(rows), len(self.verbalizer))
        return self.corpus.n_options(rows)

    def rows_of_step(self, step: int, batch_size: int, seed: int) -> Rows:
        """The examples of an update: a function of the step alone, so that a resumed run needs no other position.

        Each epoch has an order of its own and every row occurs once in it; a step may span two epochs.

        Args:
            step: updates made before this one.
            batch_size: examples of this group a step.
            seed: the run's seed.

        Returns:
            [batch_size] rows.
        """
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        n = len(self.train_rows)
        chosen = [
            self._epoch(int(epoch), seed)[places[places // n == epoch] % n]
            for epoch in np.unique(places // n)
        ]
        return self.train_rows.start + np.concatenate(chosen).astype(np.int64)

    def _epoch(self, epoch: int, seed: int) -> NDArray[np.unsignedinteger]:
        if self._order is None or self._order[0] != epoch:
            # Every process holds it, so in the fewest bytes; the draw is the same whatever the type.
            places = np.arange(len(self.train_rows), dtype=np.min_scalar_type(len(self.train_rows)))
            generator(seed, "pretrain order", self.name, epoch).shuffle(places)
            self._order = (epoch, places)
        return self._order[1]


@dataclass(frozen=True)
class Work:
    """A micro-batch of one process: which examples, and whether they count.

    Attributes:
        groups: [B] index of each example's group.
        rows: [B] its row in that group's corpus.
        counts: false for the stand-in of a process that has nothing to do while others still compute.
    """

    groups: NDArray[np.int64]
    rows: Rows
    counts: bool


def open_groups(settings: PretrainSettings, tokenizer: Tokenizer) -> list[Group]:
    """Open the task corpora of a run and choose its held-out examples.

    Raises:
        UserError: a corpus is missing or empty, or was built with another vocabulary.
    """
    groups = []
    for index, name in enumerate(settings.formats):
        corpus = TaskCorpus.open(settings.corpora, name)
        theirs = corpus.store.manifest["tokenizer"]["fingerprint"]
        if theirs != tokenizer.fingerprint:
            raise UserError(
                f"{settings.corpora} was tokenised with vocabulary {theirs[:12]}, the backbone's is "
                f"{tokenizer.fingerprint[:12]} ({tokenizer.name}); build the corpora with the backbone's tokenizer"
            )
        corpus.tokenizer = tokenizer  # of the same vocabulary; else each format would load one more
        words = corpus.label_words
        try:
            letters = name in CHOICE_FORMATS
            verbalizer = (
                Verbalizer.letters(tokenizer, len(words)) if letters else Verbalizer(tokenizer, words)
            )
        except UserError as error:
            raise UserError(
                f"{name} asks for {', '.join(words)}, and the backbone cannot say that: {error}; train the vocabulary on text "
                "that holds these words, or leave the format out of formats"
            ) from error
        for split in SPLITS:
            if not corpus.split(split):
                raise UserError(f"{settings.corpora}/{name} has no {split} examples; build it from more text")
        held_rows = corpus.rows("validation")
        if settings.eval_examples is not None and settings.eval_examples < len(held_rows):
            chosen = generator(settings.seed, "pretrain held-out", name).permutation(len(held_rows))
            held_rows = held_rows[np.sort(chosen[: settings.eval_examples])]
        groups.append(Group(index, name, corpus, verbalizer, corpus.split("train"), held_rows))
    return groups


def share_out(
    groups: Sequence[Group], picks: Sequence[Rows], settings: PretrainSettings, rank: int, world: int
) -> list[Work]:
    """One process's micro-batches of some examples; all processes get equally many (ZeRO 3 computes in lockstep).

    Examples of similar length stand together, whichever group they are of. Nothing is left out and nothing
    counts twice.

    Args:
        groups: the groups in question.
        picks: the rows of each.
        settings: prompt length and token budget.
        rank: which process.
        world: of how many.
    """
    group_ids = np.concatenate(
        [np.full(len(rows), group.index) for group, rows in zip(groups, picks, strict=True)]
    )
    rows = np.concatenate(list(picks))
    texts = [
        group.corpus.lengths(some, settings.prompt_len) for group, some in zip(groups, picks, strict=True)
    ]
    lengths = np.concatenate(texts) + settings.prompt_len
    parts = packed_batches(lengths, settings.micro_batch_tokens, multiple=world)
    mine = [Work(group_ids[part], rows[part], True) for part in parts[rank::world]]
    if len(mine) < -(-len(parts) // world):
        mine.append(Work(group_ids[parts[0][:1]], rows[parts[0][:1]], False))
    return mine


class Batcher:
    """Turns work into batches of tensors."""

    def __init__(
        self,
        groups: Sequence[Group],
        settings: PretrainSettings,
        tokenizer: Tokenizer,
        start_id: int,
        device: torch.device,
    ) -> None:
        self.groups = {group.index: group for group in groups}
        self.settings, self.tokenizer, self.start_id, self.device = settings, tokenizer, start_id, device
        # The targets of all groups' labels end to end; a group's labels follow `_first_target[its index]`.
        closing = settings.count == "all"
        words = {group.index: [group.verbalizer.target_ids(label, closing) for label in range(len(group.verbalizer))]
                 for group in groups}  # fmt: skip
        self._first_target = np.zeros(max(words, default=-1) + 1, np.int64)
        self._first_target[list(words)] = ends([len(targets) for targets in words.values()])[:-1]
        self._target_ids, self._target_offsets = end_to_end(
            [ids for targets in words.values() for ids in targets]
        )

    def render(self, work: Work) -> Rendered:
        """The examples of a micro-batch end to end, in its order."""
        places = [np.flatnonzero(work.groups == index) for index in np.unique(work.groups)]
        parts = [
            self.groups[int(work.groups[here[0]])].corpus.render_batch(
                work.rows[here], self.tokenizer, self.settings.prompt_len
            )
            for here in places
        ]
        return Rendered.in_order(parts, places)

    def batch(self, work: Work, weight: float, labels: Sequence[int] | None = None) -> PackedBatch:
        """Render a micro-batch.

        Args:
            work: its examples.
            weight: of each example in the loss.
            labels: [B] labels to ask for instead of the examples' own, for scoring; None: their own.

        Returns:
            The batch on this process's device; where only the label counts, the closing sentinel is left out
            (the decoder is causal, nothing before it changes).
        """
        rendered = self.render(work)
        asked = rendered.labels if labels is None else np.asarray(labels)
        targets = self._first_target[work.groups] + asked
        starts, lengths = self._target_offsets[targets], np.diff(self._target_offsets)[targets]
        batch = pack_flat(
            rendered, self.settings.prompt_len, work.groups, self._target_ids[spread(starts, lengths)], ends(lengths),
            np.full(len(rendered), weight * work.counts), self.tokenizer.pad_id, self.start_id, self.settings.count,
        )  # fmt: skip
        return batch.to(self.device)

    def clamp(self, work: Work, label: int) -> list[int]:
        """`label` for each example, or its group's last one where the group has no such label."""
        return [min(label, len(self.groups[index].verbalizer) - 1) for index in work.groups.tolist()]
