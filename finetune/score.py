"""Scores of labels: the log probability of each label's word at the mask, and what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from corpora.formats import Verbalizer
from finetune.inputs import Item
from pretrain.backbone import Backbone
from pretrain.batching import micro_batches, pad_inputs
from pretrain.prompts import insert_prompts

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What the model says about N examples."""

    log_probs: FloatArray  # [N, C]: of each label's word, summed over its tokens; -inf for labels a row lacks
    losses: FloatArray  # [N]: of the right label, mean over its tokens
    vocabulary_right: NDArray[np.bool_]  # [N]: no other token of the whole vocabulary scores higher
    labels: NDArray[np.int64]  # [N]
    predictions: NDArray[np.int64]  # [N]: best label

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

    def of(self, rows: NDArray[np.int64] | slice) -> Scores:
        """The scores of some of the examples."""
        return Scores(
            self.log_probs[rows], self.losses[rows], self.vocabulary_right[rows], self.labels[rows],
            self.predictions[rows],
        )  # fmt: skip


@torch.no_grad()
def score_items(
    backbone: Backbone,
    verbalizer: Verbalizer,
    items: Sequence[Item],
    prompts_KPD: torch.Tensor | None,
    prompt_ids: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    batch_tokens: int,
    length_normalised: bool = False,
) -> Scores:
    """Score every item; examples of similar length share a pass, and none is left out.

    Words of one token cost one decoder pass for all labels. Words of several tokens are forced through the decoder
    one label after the other; the encoder runs once.

    Args:
        backbone: the model.
        verbalizer: words of all labels.
        items: N rendered examples.
        prompts_KPD: soft prompts; None for a model without one.
        prompt_ids: [N] prompt of each item.
        batch_tokens: encoder tokens of a pass, padding and prompt included.
        length_normalised: choose by the mean over a word's tokens instead of their sum.
    """
    n, n_labels = len(items), len(verbalizer.ids)
    log_probs = np.full((n, n_labels), -np.inf)
    right = np.zeros(n, dtype=bool)
    prompt_len = 0 if prompts_KPD is None else prompts_KPD.shape[1]
    device = backbone.embedding_device
    which = np.zeros(n, dtype=np.int64) if prompt_ids is None else np.asarray(prompt_ids, dtype=np.int64)
    for group in micro_batches([len(item.input_ids) + prompt_len for item in items], batch_tokens):
        rows = np.asarray(group, dtype=np.int64)
        hidden_BLD, mask_BL = _encode(
            backbone, [items[row] for row in rows], prompts_KPD, which[rows], device
        )
        scores_BC, hits_BC = _label_scores(backbone, verbalizer, hidden_BLD, mask_BL)
        labels_B = np.asarray([items[row].label for row in rows])
        log_probs[rows] = scores_BC
        right[rows] = hits_BC[np.arange(len(rows)), labels_B]
    labels = np.asarray([item.label for item in items], dtype=np.int64)
    word_tokens = np.asarray([len(ids) for ids in verbalizer.ids], dtype=np.float64)
    losses = -log_probs[np.arange(n), labels] / word_tokens[labels]
    absent = np.arange(n_labels)[None, :] >= np.asarray([item.n_labels for item in items])[:, None]
    log_probs[absent] = -np.inf
    ranked = log_probs / word_tokens if length_normalised else log_probs
    # A diverged prompt scores NaN: it must lose to everything, not crash or win.
    predictions = np.where(np.isnan(ranked), -np.inf, ranked).argmax(axis=1).astype(np.int64)
    return Scores(log_probs, losses, right, labels, predictions)


def _encode(
    backbone: Backbone,
    items: Sequence[Item],
    prompts_KPD: torch.Tensor | None,
    prompt_ids: NDArray[np.int64],
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder output and mask of a padded batch, prompts included: [B, P + L, D], [B, P + L]."""
    ids_BL, mask_BL = pad_inputs([item.input_ids for item in items], backbone.pad_id)
    embeds_BLD, mask_BL = backbone.embed(ids_BL.to(device)), mask_BL.to(device)
    if prompts_KPD is not None:
        ids_B = torch.from_numpy(prompt_ids).to(device)
        embeds_BLD, mask_BL = insert_prompts(prompts_KPD, embeds_BLD, mask_BL, ids_B)
    return backbone.encode(embeds_BLD, mask_BL), mask_BL


def _label_scores(
    backbone: Backbone, verbalizer: Verbalizer, hidden_BLD: torch.Tensor, mask_BL: torch.Tensor
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Summed log probability of every label's word, and whether each of its tokens beats the whole vocabulary.

    Returns:
        [B, C] and [B, C].
    """
    device = hidden_BLD.device
    start = [backbone.start_id, int(verbalizer.target_ids(0, closing=False)[0])]  # `<pad> <extra_id_0>`
    words = [list(ids) for ids in verbalizer.ids]

    def log_probs_after(prefix: list[int]) -> torch.Tensor:
        """[B, tokens, V] log probabilities at and after the label's first position."""
        decoder_ids_BT = torch.tensor([start + prefix], device=device).expand(len(hidden_BLD), -1)
        logits_BTV = backbone.decode(hidden_BLD, mask_BL, decoder_ids_BT)[:, 1:]
        return logits_BTV.float().log_softmax(-1)

    first_BV = log_probs_after([])[:, 0]
    scores = torch.stack([first_BV[:, word[0]] for word in words], dim=1).double()
    best_B = first_BV.argmax(-1)
    hits = torch.stack([best_B == word[0] for word in words], dim=1)
    for column, word in enumerate(words):
        if len(word) == 1:
            continue
        later_BTV = log_probs_after(word[:-1])[:, 1:]
        ids_T = torch.tensor(word[1:], device=device)
        scores[:, column] += (
            later_BTV.gather(-1, ids_T.expand(len(later_BTV), -1)[..., None])[..., 0].double().sum(1)
        )
        hits[:, column] &= (later_BTV.argmax(-1) == ids_T).all(dim=1)
    return scores.cpu().numpy(), hits.cpu().numpy()
