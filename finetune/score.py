"""Scores of labels: the log probability of each label's word at the mask, and what is computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from corpora.formats import Verbalizer
from corpora.rendering import Rendered
from finetune.inputs import Item
from finetune.label_words import LabelWords
from pretrain.backbone import Backbone
from pretrain.batching import PackedBatch, end_to_end, pack_flat
from pretrain.forward import ForwardOptions, encode_prompted
from pretrain.side_by_side import by_micro_batch

FloatArray = NDArray[np.float64]
Int64 = NDArray[np.int64]

ANYWHERE = ForwardOptions()  # computes on any device
MOST_LOGITS = 2**26  # of a decoder pass: 256 MB in float32, two thousand positions with T5's vocabulary


@dataclass(frozen=True)
class Scores:
    """What the model says about N examples."""

    log_probs: FloatArray  # [N, C]: of each label's word, summed over its tokens; -inf for labels a row lacks
    losses: FloatArray  # [N]: of the right label, mean over its tokens
    vocabulary_right: NDArray[np.bool_]  # [N]: no other token of the whole vocabulary scores higher
    labels: Int64  # [N]
    ranked: FloatArray  # [N, C]: the best label has the highest; `log_probs` unless length-normalised or calibrated

    @property
    def predictions(self) -> Int64:
        """Best label of each example, [N]."""
        # A diverged prompt scores NaN: it must lose to everything, not crash or win.
        return np.where(np.isnan(self.ranked), -np.inf, self.ranked).argmax(axis=1).astype(np.int64)

    @property
    def n_labels(self) -> Int64:
        """How many labels each example can have, [N]: the first ones."""
        return (~np.isneginf(self.log_probs)).sum(axis=1).astype(np.int64)

    @property
    def accuracy(self) -> float:
        """Share of examples whose best label is the right one."""
        return float(np.mean(self.predictions == self.labels))

    @property
    def loss(self) -> float:
        """Mean loss of the right labels."""
        return float(np.mean(self.losses))

    @property
    def vocabulary_accuracy(self) -> float:
        """Share of examples whose best *token of the whole vocabulary* is the right one (the released code's score)."""
        return float(np.mean(self.vocabulary_right))

    @property
    def macro_f1(self) -> float:
        """Unweighted mean of F1 over the labels that occur among labels or predictions."""
        from sklearn.metrics import f1_score

        return float(f1_score(self.labels, self.predictions, average="macro", zero_division=0.0))

    def of(self, rows: Int64 | slice, n_labels: int | None = None) -> Scores:
        """The scores of some of the examples, as of a task of `n_labels` labels (None: as many columns as there are)."""
        return Scores(
            self.log_probs[rows, :n_labels], self.losses[rows], self.vocabulary_right[rows], self.labels[rows],
            self.ranked[rows, :n_labels],
        )  # fmt: skip


@torch.no_grad()
def score_items(
    backbone: Backbone,
    verbalizers: Verbalizer | Sequence[Verbalizer],
    items: Sequence[Item],
    prompts_KPD: torch.Tensor | None,
    prompt_ids: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    batch_tokens: int,
    length_normalised: bool = False,
    options: ForwardOptions = ANYWHERE,
) -> Scores:
    """Score every item; examples of all tasks and prompts share micro-batches, end to end, and none is left out.

    The encoder runs once. Words of one token cost one decoder pass for all labels, with one row an example. Words of several
    tokens are forced through the decoder, all labels of an example in one pass over the same encoder states; beginnings
    that words share are computed once. Logits are made where a token of a word follows, and nowhere else.

    Args:
        backbone: the model; its weights may be ones that train elsewhere.
        verbalizers: words of all labels, or [N] those of each item; C is the most that one has.
        items: N rendered examples.
        prompts_KPD: soft prompts; None for a model without one.
        prompt_ids: [N] prompt of each item.
        batch_tokens: encoder tokens of a pass, prompt included, and the most that the decoder has at once.
        length_normalised: choose by the mean over a word's tokens instead of their sum.
        options: how the encoder computes.
    """
    n = len(items)
    each = [verbalizers] * n if isinstance(verbalizers, Verbalizer) else verbalizers
    words = {verbalizer: LabelWords.of(verbalizer, backbone.start_id) for verbalizer in set(each)}
    which = np.zeros(n, dtype=np.int64) if prompt_ids is None else np.asarray(prompt_ids, dtype=np.int64)
    device = backbone.embedding_device
    if prompts_KPD is None:
        prompts_KPD = torch.zeros(1, 0, backbone.d_model, device=device)
    # Where a kernel multiplies what it masks, as fused ones do, one example's NaN would be its neighbours' too.
    broken_K = ~torch.isfinite(prompts_KPD).flatten(1).all(1)
    prompts_KPD = prompts_KPD.masked_fill(broken_K[:, None, None], 0.0)
    prompt_len = prompts_KPD.shape[1]

    def part(rows: Int64) -> list[tuple[Int64, _Found]]:
        here = [items[row] for row in rows]
        # The first block reads every prompt that it is given, so those of other micro-batches stay away.
        used, prompts = np.unique(which[rows], return_inverse=True)
        batch = _packed(backbone, [each[row] for row in rows], here, prompt_len, prompts).to(device)
        states = encode_prompted(backbone, prompts_KPD[torch.from_numpy(used).to(device)], batch, options)
        asked = [words[each[row]] for row in rows]
        return [
            (rows[some], _read(backbone, *states, some, [asked[i] for i in some]))
            for some in _decoder_passes(asked, batch_tokens, backbone.vocab_size)
        ]

    lengths = [len(item.input_ids) + prompt_len for item in items]
    parts = by_micro_batch(part, lengths, batch_tokens, device)
    passes = [one for _, found in parts for one in found]
    log_probs = np.full((n, max(map(len, words))), -np.inf)
    for i, verbalizer in enumerate(each):
        log_probs[i, : len(verbalizer)] = 0.0
    right = np.ones(n, dtype=bool)
    labels = np.asarray([item.label for item in items], dtype=np.int64)
    # Only now is anything brought back from the device, which so far had no need to wait.
    for rows, found in passes:
        examples, values, best = (
            rows[found.examples_G],
            found.values_G.cpu().numpy(),
            found.best_G.cpu().numpy(),
        )
        np.add.at(log_probs, (examples, found.labels_G), values)
        own = found.labels_G == labels[examples]
        np.logical_and.at(right, examples[own], best[own])
    lost = broken_K.cpu().numpy()[which]
    log_probs[lost], right[lost] = np.where(np.isneginf(log_probs[lost]), -np.inf, np.nan), False
    return _scores(log_probs, right, labels, each, items, length_normalised)


def _scores(
    log_probs: FloatArray,
    right: NDArray[np.bool_],
    labels: Int64,
    verbalizers: Sequence[Verbalizer],
    items: Sequence[Item],
    length_normalised: bool,
) -> Scores:
    """Losses of the right labels, labels that rows lack taken out, and what to choose by."""
    n, most = log_probs.shape
    tokens = {one: np.array([*map(len, one.ids), *[1] * (most - len(one))]) for one in set(verbalizers)}
    tokens_NC = np.stack([tokens[one] for one in verbalizers])
    losses = -(log_probs / tokens_NC)[np.arange(n), labels]
    absent = np.arange(most) >= np.asarray([item.n_labels for item in items])[:, None]
    log_probs[absent] = -np.inf
    return Scores(log_probs, losses, right, labels, log_probs / tokens_NC if length_normalised else log_probs)


def _packed(
    backbone: Backbone,
    verbalizers: Sequence[Verbalizer],
    items: Sequence[Item],
    prompt_len: int,
    prompt_ids: Int64,
) -> PackedBatch:
    """Items end to end, each after its prompt's places."""
    labels = np.asarray([item.label for item in items], dtype=np.int64)
    rendered = Rendered(*end_to_end([item.input_ids for item in items]), labels)
    targets = [
        one.target_ids(item.label, closing=False) for one, item in zip(verbalizers, items, strict=True)
    ]
    return pack_flat(
        rendered, prompt_len, prompt_ids, *end_to_end(targets), np.ones(len(items)), backbone.pad_id, backbone.start_id
    )  # fmt: skip


def _decoder_passes(words: Sequence[LabelWords], batch_tokens: int, vocabulary: int) -> Iterator[Int64]:
    """Which examples of a micro-batch go through the decoder together: those with decoder inputs of one shape.

    Args:
        words: [B] of each example.
        batch_tokens: most decoder positions of a pass.
        vocabulary: V.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(words):
        by_shape.setdefault(one.rows_RT.shape, []).append(place)
    for (rows, length), members in by_shape.items():
        contexts = max(len(words[place].places_S) for place in members)
        most = max(1, min(batch_tokens // (rows * length), MOST_LOGITS // (contexts * vocabulary)))
        for start in range(0, len(members), most):
            yield np.asarray(members[start : start + most], dtype=np.int64)


@dataclass(frozen=True)
class _Found:
    """G tokens of label words of some examples."""

    examples_G: Int64  # which of the pass's examples
    labels_G: Int64  # whose word
    values_G: torch.Tensor  # float64 log probability
    best_G: torch.Tensor  # bool: no other token of the vocabulary is likelier


def _read(
    backbone: Backbone,
    states_BLD: torch.Tensor,
    mask_BL: torch.Tensor,
    part: Int64,
    words: Sequence[LabelWords],
) -> _Found:
    """One decoder pass: log probabilities of all tokens of the label words of some examples.

    Args:
        backbone: the model.
        states_BLD, mask_BL: of a micro-batch.
        part: which of its examples.
        words: of each of these; their decoder inputs have one shape.
    """
    device = states_BLD.device

    def there(array: Int64) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    if len(part) < len(states_BLD):
        states_BLD, mask_BL = states_BLD[there(part)], mask_BL[there(part)]
    positions = words[0].rows_RT.size
    contexts = np.cumsum([0, *(len(one.places_S) for one in words)])
    places_X = np.concatenate([one.places_S + i * positions for i, one in enumerate(words)])
    contexts_G = np.concatenate([one.contexts_J + contexts[i] for i, one in enumerate(words)])
    examples_G = np.repeat(np.arange(len(words)), [len(one.tokens_J) for one in words])
    ids_RT = there(np.concatenate([one.rows_RT for one in words]))
    tokens_G = there(np.concatenate([one.tokens_J for one in words]))
    output_XD = backbone.decoder_output(states_BLD, mask_BL, ids_RT).flatten(0, 1)[there(places_X)]
    logits_XV = backbone.logits(output_XD)
    logits_XV = logits_XV.to(torch.promote_types(logits_XV.dtype, torch.float32))
    at_G = there(contexts_G)
    values_G = logits_XV[at_G, tokens_G] - logits_XV.logsumexp(-1)[at_G]
    best_G = logits_XV.argmax(-1)[at_G] == tokens_G
    return _Found(examples_G, np.concatenate([one.labels_J for one in words]), values_G.double(), best_G)
