"""Sets of several tasks and prompts scored in one go, and contextual calibration (Zhao et al. 2021, "Calibrate Before Use")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from corpora.formats import Verbalizer
from finetune.inputs import EncodedRow, Item, Renderer
from finetune.score import ANYWHERE, FloatArray, Scores, score_items
from pretrain.backbone import Backbone
from pretrain.forward import ForwardOptions

# The three of the released code (run_classification.py), "[MASK]" as plain text there too: GPT-3 knows no mask. T5's own one beside
# the pattern's would make two questions of one. In Chinese "无" (none) in place of "N/A" is ours.
CONTENT_FREE = {"en": ("N/A", "", "[MASK]"), "zh": ("无", "", "[MASK]")}


def content_free_items(renderer: Renderer, items: Sequence[Item]) -> list[Item]:
    """Rows that say nothing, through a task's pattern.

    Each text stands in every field, while fixed options stay. Where options are each row's own it stands in them too, so that what is
    left is the letters; these have rows for every number of options that occurs. A text that the vocabulary
    cannot spell is left out; the empty one always stays.

    Args:
        renderer: of the task's pattern.
        items: those that are to be calibrated.

    Returns:
        Items whose label means nothing.
    """
    task, tokenizer = renderer.task, renderer.tokenizer
    texts = tokenizer.encode(CONTENT_FREE.get(task.language, CONTENT_FREE["en"]))
    known = [ids for ids in texts if tokenizer.unk_id not in ids]
    sizes = sorted({item.n_labels for item in items})
    return renderer.render(
        EncodedRow(dict.fromkeys(task.field_names(), ids), (ids,) * n if task.own_options else (), 0)
        for n in sizes
        for ids in known
    )


def calibrated(scores: Scores, content_free: Scores) -> Scores:
    """Label probabilities divided by those that content-free texts give, and made to sum to one again.

    Both are normalised over the labels of a row first, so that each content-free text counts alike in their mean (the released code
    takes the mean first). `ranked` becomes the logarithm of the result, so that the best label is chosen by it. `log_probs`, `losses`
    and the score over the whole vocabulary stay as the model gives them: the loss is what training lowers, and
    calibration says nothing about words that are no label.

    Args:
        scores: of N examples.
        content_free: of the texts of `content_free_items`, by the same prompt.

    Raises:
        ValueError: no content-free text has as many labels as an example.
    """
    ranked = np.full_like(scores.ranked, -np.inf)
    for n in np.unique(scores.n_labels):
        here, free = scores.n_labels == n, content_free.n_labels == n
        if not free.any():
            raise ValueError(f"no content-free text has {n} labels; make them with `content_free_items`")
        log_probs_MC = _normalised(content_free.ranked[free, :n])
        bias_C = _log_sum(log_probs_MC, 0)[0] - np.log(len(log_probs_MC))
        ranked[here, :n] = _normalised(scores.ranked[here, :n] - bias_C)
    return replace(scores, ranked=ranked)


def _normalised(log_probs_NC: FloatArray) -> FloatArray:
    """The same, each row's probabilities summing to one."""
    return log_probs_NC - _log_sum(log_probs_NC, 1)


def _log_sum(log_probs_NC: FloatArray, axis: int) -> FloatArray:
    """The logarithm of the sum of probabilities; the axis stays, of length one."""
    with np.errstate(invalid="ignore"):  # a diverged prompt's NaN stays NaN
        found: FloatArray = np.logaddexp.reduce(log_probs_NC, axis=axis, keepdims=True)
    return found


@dataclass(frozen=True)
class ItemSet:
    """Items that are scored with one prompt."""

    items: Sequence[Item]
    verbalizer: Verbalizer
    prompt: int = 0  # which of the K
    content_free: Sequence[
        Item
    ] = ()  # calibrate by these, from `content_free_items`; empty: do not calibrate


def score_sets(
    backbone: Backbone,
    sets: Sequence[ItemSet],
    prompts_KPD: torch.Tensor | None,
    *,
    batch_tokens: int,
    length_normalised: bool = False,
    options: ForwardOptions = ANYWHERE,
) -> list[Scores]:
    """Score several sets, of one task or of many, in shared micro-batches.

    Args:
        backbone: the model.
        sets: at will.
        prompts_KPD: soft prompts; None for a model without one.
        batch_tokens, length_normalised, options: as `score_items`.

    Returns:
        Scores of each set's items, calibrated where it has content-free ones.
    """
    if not sets:
        return []
    groups = [[*one.items, *one.content_free] for one in sets]
    sizes = [len(group) for group in groups]
    scores = score_items(
        backbone,
        [one.verbalizer for one, size in zip(sets, sizes, strict=True) for _ in range(size)],
        [item for group in groups for item in group],
        prompts_KPD,
        np.repeat([one.prompt for one in sets], sizes),
        batch_tokens=batch_tokens,
        length_normalised=length_normalised,
        options=options,
    )
    found = []
    for one, end, size in zip(sets, np.cumsum(sizes).tolist(), sizes, strict=True):
        start, n_labels = end - size, len(one.verbalizer)
        own = scores.of(slice(start, start + len(one.items)), n_labels)
        free = scores.of(slice(start + len(one.items), end), n_labels)
        found.append(calibrated(own, free) if one.content_free else own)
    return found
