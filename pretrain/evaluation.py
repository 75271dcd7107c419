"""Loss and accuracy of prompts, on a step's examples and on the held-out part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.batching import Targets
from pretrain.distributed import Processes
from pretrain.forward import run_batch
from pretrain.groups import Batcher, Group, Work, share_out
from pretrain.settings import PretrainSettings


@dataclass(frozen=True)
class Score:
    """How a prompt does on some examples.

    Attributes:
        loss: mean over the examples of the mean negative log probability of the label's own tokens.
        accuracy: share of the examples whose own label is the likeliest of the labels they could have.
        examples: how many.
    """

    loss: float
    accuracy: float
    examples: int


def label_losses(
    logits_BTV: torch.Tensor, work: Work, groups: dict[int, Group], labels: Sequence[int]
) -> torch.Tensor:
    """Loss of each example over its label's own tokens, whatever the training loss counts.

    Args:
        logits_BTV: of a batch whose targets are `labels`, from the label's first token on.
        work: its examples.
        groups: by index.
        labels: [B].

    Returns:
        [B], float32.
    """
    words = [
        groups[index].verbalizer.ids[label] for index, label in zip(work.groups.tolist(), labels, strict=True)
    ]
    longest = max(map(len, words))
    ids_BW = torch.tensor([[*word, *[0] * (longest - len(word))] for word in words], device=logits_BTV.device)
    n_B = torch.tensor([len(word) for word in words], device=logits_BTV.device)
    log_probs_BWV = logits_BTV[:, :longest].float().log_softmax(-1)
    picked_BW = log_probs_BWV.gather(-1, ids_BW[..., None])[..., 0]
    counted_BW = torch.arange(longest, device=logits_BTV.device) < n_B[:, None]
    return -(picked_BW * counted_BW).sum(1) / n_B


def right_answers(
    logits_BTV: torch.Tensor, work: Work, groups: dict[int, Group], batch: Targets
) -> torch.Tensor:
    """Which examples have their own label as the likeliest, by one decoder position.

    Args:
        logits_BTV: of the batch, from the label's first token on.
        work: its examples.
        groups: by index; the answer means nothing where words have several tokens.
        batch: the batch.

    Returns:
        bool [B].
    """
    right_B = torch.zeros(len(work.rows), dtype=torch.bool, device=logits_BTV.device)
    for index in np.unique(work.groups):
        group = groups[int(index)]
        here = np.flatnonzero(work.groups == index)
        where_B = torch.from_numpy(here).to(logits_BTV.device, non_blocking=True)
        words_C = torch.tensor([ids[0] for ids in group.verbalizer.ids])
        words_C = words_C.to(logits_BTV.device, non_blocking=True)
        scores_BC = logits_BTV[where_B, 0][:, words_C].float()
        choices_B = torch.from_numpy(group.n_labels(work.rows[here])).to(logits_BTV.device, non_blocking=True)
        beyond_BC = torch.arange(len(words_C), device=logits_BTV.device) >= choices_B[:, None]
        best_B = scores_BC.masked_fill(beyond_BC, -torch.inf).argmax(-1)
        right_B[where_B] = best_B == batch.labels_B[where_B]
    return right_B


@torch.no_grad()
def evaluate(
    net: torch.nn.Module,
    prompts_KPD: torch.Tensor,
    groups: Sequence[Group],
    settings: PretrainSettings,
    batcher: Batcher,
    processes: Processes,
    stops: Callable[[], bool] = lambda: False,
) -> dict[str, Score] | None:
    """Score each group's prompt on all of its held-out rows; the processes share them out.

    Args:
        net: what `deepspeed_module` gave.
        prompts_KPD: [K, P, D].
        groups: to be scored.
        settings: the run.
        batcher: makes batches of examples.
        processes: of the job.
        stops: asked by every process before each micro-batch, with the same answer for all: whether to leave off.

    Returns:
        A score a group, the same on every process; None when it was left off. The figures do not depend on how many
        processes or micro-batches there are, up to rounding.
    """
    by_index = batcher.groups
    # Every process makes the same passes: ZeRO 3 computes in lockstep.
    passes = max((len(group.verbalizer) for group in groups if not group.one_token_words), default=0)
    sums = torch.zeros(max(by_index) + 1, 3, dtype=torch.float64)  # loss, right answers, examples
    for work in share_out(
        groups, [group.held_rows for group in groups], settings, processes.data_rank, processes.data_world
    ):
        if stops():
            return None
        batch = batcher.batch(work, 1.0)
        # Words of several tokens are forced through the decoder, one label after the other.
        asked = [batcher.clamp(work, label) for label in range(passes)]
        others = [batcher.batch(work, 1.0, labels) for labels in asked]
        logits_BTV, *other_logits = run_batch(net, prompts_KPD, batch, others)
        losses_B = label_losses(logits_BTV, work, by_index, batch.labels_B.tolist())
        right_B = right_answers(logits_BTV, work, by_index, batch)
        if passes:
            several_B, spelt_B = _right_of_several_tokens(other_logits, asked, work, batcher, batch)
            right_B = torch.where(several_B, spelt_B, right_B)
        if work.counts:
            row = torch.stack(
                [losses_B.double(), right_B.double(), torch.ones_like(losses_B).double()], 1
            ).cpu()
            sums.index_add_(0, torch.from_numpy(work.groups), row)
    total = processes.sum(sums.to(processes.device)).cpu().tolist()
    return {
        group.name: Score(total[group.index][0] / total[group.index][2], total[group.index][1] / total[group.index][2],
                          round(total[group.index][2]))
        for group in groups
    }  # fmt: skip


def _right_of_several_tokens(
    logits: Sequence[torch.Tensor], asked: Sequence[list[int]], work: Work, batcher: Batcher, batch: Targets
) -> tuple[torch.Tensor, torch.Tensor]:
    """`right_answers` by the summed log probability of whole words.

    Args:
        logits: [B, T, V] for each label.
        asked: [B] labels that each of them was made with; a group's last one where it has no more.
        work: the examples.
        batcher: knows the groups.
        batch: the batch with the examples' own labels.

    Returns:
        bool [B], whether an example's group has words of several tokens, and bool [B], its answer if so.
    """
    device = batch.labels_B.device
    groups = [batcher.groups[index] for index in work.groups.tolist()]
    several_B = torch.tensor([not group.one_token_words for group in groups], device=device)
    n_labels_B = torch.tensor([len(group.verbalizer) for group in groups], device=device)
    columns = []
    for label, (logits_BTV, labels) in enumerate(zip(logits, asked, strict=True)):
        losses_B = label_losses(logits_BTV, work, batcher.groups, labels)
        n_tokens = [len(group.verbalizer.ids[one]) for group, one in zip(groups, labels, strict=True)]
        scores_B = -losses_B * torch.tensor(n_tokens, device=device)
        columns.append(scores_B.masked_fill(n_labels_B <= label, -torch.inf))
    return several_B, torch.stack(columns, 1).argmax(-1) == batch.labels_B
