"""Searches the vocabulary for label words with the backbone itself.

Two steps, after LM-BFF (Gao et al. 2021, arXiv 2012.15723, automatic selection of label words): the words that the backbone
expects most at the mask of one label's examples, then assignments of them to all labels by their accuracy there. Among those
words the order is that of a likelihood ratio against the other labels, as in PETAL (Schick et al. 2020, arXiv 2010.13641):
likelihood alone finds what fits any example, and the ratio alone finds words that are never expected, whose tiny differences fit 32
examples by chance. Both steps see the training examples of one draw; its dev examples stay unseen, so that `wording: dev` may choose
among what was found.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from corpora.common.errors import UserError
from corpora.tokenizer import SPACE, Tokenizer
from finetune.inputs import Item
from finetune.methods import Row
from finetune.settings import FewshotSettings
from finetune.task import PatternKind, Task, WordSearch
from finetune.workshop import Cell, Workshop
from pretrain.backbone import Backbone
from pretrain.batching import micro_batches, pad_inputs
from pretrain.prompts import word_pieces

FREQUENT = 10_000  # words that are looked at, the most frequent ones (PETAL)
EXPECTED = 100  # words of each label, the likeliest at its examples, that are ranked (LM-BFF)
ASSIGNMENTS = (
    10_000  # combinations of the labels' best words that are compared: all 100 of each of two labels
)
FIRST_IDEOGRAPH = 0x2E80  # from here on one character may be a word

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Assignment:
    """A word for each label, and how the backbone does with them."""

    words: tuple[str, ...]
    accuracy: float  # on the training examples that the words were found on
    loss: float  # mean of -log p(right label's word) there
    dev_accuracy: float  # on the dev examples, which the search has not seen
    dev_loss: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        task: the task.
        kind: the pattern at whose mask the words stand.
        words: for each label, (word, mean log probability at its examples less that at the others'), best first.
        own: the task's own words, or None where one of them is not a single piece.
        best: assignments, best first.
        n_train, n_dev: examples.
        seed: whose draw they are.
        backbone, backbone_fingerprint: what searched.
    """

    task: Task
    kind: PatternKind
    words: list[list[tuple[str, float]]]
    own: Assignment | None
    best: list[Assignment]
    n_train: int
    n_dev: int
    seed: int
    backbone: str
    backbone_fingerprint: str

    def search(self, one: Assignment) -> WordSearch:
        """How one of the assignments was found, for the task file."""
        own = self.own
        return WordSearch(
            seed=self.seed,
            pattern=self.kind,
            backbone=self.backbone,
            backbone_fingerprint=self.backbone_fingerprint,
            n_train=self.n_train,
            n_dev=self.n_dev,
            accuracy=round(one.accuracy, 6),
            dev_accuracy=round(one.dev_accuracy, 6),
            own_accuracy=round(own.accuracy, 6) if own else None,
            own_dev_accuracy=round(own.dev_accuracy, 6) if own else None,
        )


def find_label_words(
    settings: FewshotSettings, seed: int = 0, n: int = 10, kind: PatternKind | None = None
) -> Found:
    """Search words for the one task that the settings name.

    Args:
        settings: backbone, task, data and sizes of the draw.
        seed: whose draw is used.
        n: words a label and assignments to give back.
        kind: which of the task's patterns; None: the hard one where there is one.

    Raises:
        UserError: the task answers with letters, a label has no drawn example, or the vocabulary lacks whole words.
    """
    workshop = Workshop(settings)
    task = workshop.task(settings.tasks[0])
    kind = kind or ("hard" if task.hard else "plain")
    cell = Cell(
        settings.tasks[0],
        settings.all_shots[0],
        Row("vanilla_pt", kind, None),
        seed,
        1.0,
    )
    if task.own_options or workshop.renderer(cell).pattern.has_options:
        raise UserError(
            f"task {task.name} answers its {kind} pattern with letters; label words are searched for a pattern without "
            "{options} of a task with a verbalizer"
        )
    drawn = workshop.draw(cell.task, cell.shots, seed)
    train, dev = workshop.items(cell, "train", drawn.train), workshop.items(cell, "train", drawn.dev)
    labels = np.array([item.label for item in train])
    absent = [name for label, name in enumerate(task.labels) if label not in labels]
    if absent:
        raise UserError(
            f"task {task.name}: none of the {len(train)} drawn examples has the label {absent[0]}; "
            "take another seed, more shots or stratified draws"
        )
    tokenizer, backbone = workshop.tokenizer("main"), workshop.net("main").backbone
    ids_W, words = whole_words(tokenizer)
    if len(words) < len(task.labels):
        raise UserError(
            f"tokenizer {tokenizer.name} has {len(words)} whole words of one piece; expected many"
        )
    own_ids = workshop.renderer(cell).verbalizer.ids
    own_W = np.array([ids[0] for ids in own_ids if len(ids) == 1], dtype=np.int64)
    asked_W = np.concatenate([ids_W, own_W])
    budget = workshop.options("main").batch_tokens
    sentinel = tokenizer.sentinel(0)
    train_NW, dev_NW = (mask_log_probs(backbone, sentinel, items, asked_W, budget) for items in (train, dev))
    dev_labels = np.array([item.label for item in dev])
    columns = len(words)
    ranked_LM = rank_words(train_NW[:, :columns], labels, len(task.labels), tokenizer.size)

    def assignment(places: Sequence[int], names: tuple[str, ...]) -> Assignment:
        rows = [(train_NW[:, list(places)], labels), (dev_NW[:, list(places)], dev_labels)]
        (accuracy, loss), (dev_accuracy, dev_loss) = (score(log_probs, right) for log_probs, right in rows)
        return Assignment(names, accuracy, loss, dev_accuracy, dev_loss)

    best = [
        assignment(places, tuple(words[place] for place in places))
        for places in best_assignments(train_NW, labels, [row[0] for row in ranked_LM], n)
    ]
    own = None
    if len(own_W) == len(own_ids):
        own = assignment(range(columns, columns + len(own_W)), task.verbalizer)
    shown = [[(words[j], float(ratio)) for j, ratio in zip(*row, strict=True)][:n] for row in ranked_LM]
    return Found(
        task, kind, shown, own, best, len(train), len(dev), seed, backbone.name, backbone.fingerprint
    )


def whole_words(tokenizer: Tokenizer) -> tuple[IntArray, list[str]]:
    """Ids and spellings of the most frequent words that are one piece where a label word stands: two letters or more."""
    ids, words = [], []
    for number, piece in zip(*word_pieces(tokenizer), strict=True):
        word = piece.removeprefix(SPACE)
        if not word.isalpha() or (len(word) == 1 and ord(word) < FIRST_IDEOGRAPH):
            continue
        with contextlib.suppress(UserError):  # a piece that no text is cut into
            if tokenizer.word_ids(word) == (int(number),):
                ids.append(int(number))
                words.append(word)
        if len(words) == FREQUENT:
            break
    return np.array(ids, dtype=np.int64), words


@torch.no_grad()
def mask_log_probs(
    backbone: Backbone, sentinel: int, items: Sequence[Item], ids_W: IntArray, batch_tokens: int
) -> FloatArray:
    """Log probability of each of W pieces at the mask of each of N examples, without a prompt: [N, W].

    Args:
        backbone: the frozen model.
        sentinel: id of `<extra_id_0>`, behind which the decoder names the mask's word.
        items: N rendered examples.
        ids_W: the pieces.
        batch_tokens: encoder tokens of a pass.
    """
    device = backbone.embedding_device
    wanted_W = torch.from_numpy(ids_W).to(device)
    found_NW = np.empty((len(items), len(ids_W)), dtype=np.float32)
    for group in micro_batches([len(item.input_ids) for item in items], batch_tokens):
        ids_BL, mask_BL = pad_inputs([items[i].input_ids for i in group], backbone.pad_id)
        mask_BL = mask_BL.to(device)
        states_BLD = backbone.encode(backbone.embed(ids_BL.to(device)), mask_BL)
        start_BT = torch.tensor([[backbone.start_id, sentinel]], device=device).expand(len(group), -1)
        logits_BV = backbone.decode(states_BLD, mask_BL, start_BT, first=1)[:, 0]
        found_NW[group] = logits_BV.float().log_softmax(-1)[:, wanted_W].cpu().numpy()
    return found_NW


def rank_words(
    log_probs_NW: FloatArray, labels: IntArray, n_labels: int, vocabulary: int
) -> list[tuple[IntArray, FloatArray]]:
    """For each label, columns of the words that it may take, by falling ratio, and the ratios.

    A word's ratio is its mean log probability at the label's examples less that at the other labels' examples. Words
    that the backbone expects less at the label's examples than a blind guess over the whole vocabulary would are left out,
    but for as many as there are labels.

    Args:
        log_probs_NW: [N, W].
        labels: [N], each label at least once.
        n_labels: how many there are.
        vocabulary: pieces of the vocabulary.
    """
    found = []
    for label in range(n_labels):
        own_N = labels == label
        mean_W = log_probs_NW[own_N].mean(0)
        expected = int((mean_W > -np.log(vocabulary)).sum())
        kept = np.argsort(-mean_W, kind="stable")[: min(EXPECTED, max(expected, n_labels))]
        ratio_W = mean_W[kept] - log_probs_NW[~own_N].mean(0)[kept]
        order = np.argsort(-ratio_W, kind="stable")
        found.append((kept[order], ratio_W[order]))
    return found


def best_assignments(
    log_probs_NW: FloatArray, labels: IntArray, ranked: Sequence[IntArray], n: int
) -> list[tuple[int, ...]]:
    """The n best choices of a different word for each label, out of each label's best words.

    Args:
        log_probs_NW: [N, W].
        labels: [N].
        ranked: for each label, columns by falling ratio.
        n: how many to give back.

    Returns:
        Columns by label; highest accuracy first, then lower loss, then the order of the ratios.
    """
    each = max(1, int(ASSIGNMENTS ** (1 / len(ranked)) + 1e-9))
    scored = []
    for order, places in enumerate(itertools.product(*(columns[:each].tolist() for columns in ranked))):
        if len(set(places)) == len(places):
            accuracy, loss = score(log_probs_NW[:, list(places)], labels)
            scored.append((-accuracy, loss, order, places))
    return [places for _, _, _, places in sorted(scored)[:n]]


def score(log_probs_NC: FloatArray, labels: IntArray) -> tuple[float, float]:
    """Accuracy and mean loss of the right labels, of words' log probabilities [N, C] at N examples."""
    right_N = log_probs_NC[np.arange(len(labels)), labels]
    return float(np.mean(log_probs_NC.argmax(1) == labels)), float(-right_N.mean())
