"""One update of the prompts: the gradients of all micro-batches of all processes, one small message, AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pretrain.batching import Targets, example_losses
from pretrain.distributed import Processes
from pretrain.evaluation import label_losses, right_answers
from pretrain.forward import run_batch
from pretrain.groups import Batcher, Group, Work, share_out
from pretrain.pace import Pace
from pretrain.prompts import PromptBank
from pretrain.settings import PretrainSettings, learning_rate_scale


@dataclass(frozen=True)
class Update:
    """What came of an update, the same on every process.

    Attributes:
        sums_KS: [K, 5] sums over this step's examples: label loss, right answers, training loss, examples; and the
            gradient norm.
        stop: whether any process is to stop.
        spoilt: empty; or, where a loss or gradient is no number and nothing was updated, the rows of each group's
            corpus whose loss it is, and no rows for a group of which only the gradient is.
    """

    sums_KS: torch.Tensor
    stop: bool
    spoilt: dict[str, list[int]]


def train_step(
    net: torch.nn.Module,
    bank: PromptBank,
    batcher: Batcher,
    active: Sequence[Group],
    step: int,
    settings: PretrainSettings,
    processes: Processes,
    pace: Pace,
) -> Update:
    """One update of the active prompts: sum over prompts of the mean loss over each prompt's own examples.

    Args:
        net: what `deepspeed_module` gave.
        bank: the K prompts.
        batcher: makes batches of examples.
        active: groups that learn.
        step: updates made before this one.
        settings: the run.
        processes: of the job; every one of them calls this.
        pace: says whether to stop, and hears how long this process computes.
    """
    pace.begin_step(step)
    bank.zero_grad()
    k = len(bank.prompts_KPD)
    picks = [group.rows_of_step(step, settings.batch_size, settings.seed) for group in active]
    sums_KS = torch.zeros(k, 4, device=processes.device)
    seen: list[tuple[torch.Tensor, Work]] = []
    for work in share_out(active, picks, settings, processes.data_rank, processes.data_world):
        batch = batcher.batch(work, 1.0 / settings.batch_size)
        counted_from = 0 if settings.count == "all" else 1
        (logits_BTV,) = run_batch(net, bank.prompts_KPD, batch, first=counted_from)
        losses_B = example_losses(logits_BTV, batch)
        (losses_B * batch.example_weights_B).sum().backward()
        if work.counts:
            sums_KS.index_add_(
                0,
                batch.prompt_ids_B,
                _measured(logits_BTV[:, 1 - counted_from :], losses_B, work, batcher, batch, settings),
            )
            seen.append((losses_B.detach(), work))

    grad = bank.prompts_KPD.grad
    assert grad is not None  # every process has at least one micro-batch
    # One small message a step: gradients, sums, and what the pace has to tell.
    parts = (grad.flatten(), sums_KS.flatten(), pace.end_step(step))
    message = processes.sum(torch.cat(parts), wishes=len(parts[-1]))
    grads, sums, tail = message.split([len(part) for part in parts])
    grad.copy_(grads.view_as(grad))
    sums_KS = sums.view_as(sums_KS)
    stop = pace.read(tail, step)
    if not bool(torch.isfinite(message).all()):
        return Update(torch.zeros(k, 5), stop, _spoilt(seen, active, grad, processes))
    active_K = torch.zeros(k, dtype=torch.bool, device=processes.device)
    active_K[[group.index for group in active]] = True
    scale_K = torch.full((k,), learning_rate_scale(settings, step), device=processes.device)
    norms_K = bank.step(scale_K, active_K)
    return Update(torch.cat([sums_KS, norms_K[:, None].to(sums_KS)], 1).cpu(), stop, {})


@torch.no_grad()
def _measured(
    logits_BTV: torch.Tensor,
    losses_B: torch.Tensor,
    work: Work,
    batcher: Batcher,
    batch: Targets,
    settings: PretrainSettings,
) -> torch.Tensor:
    """[B, 4] label loss, right answer, training loss and 1 of each example of a micro-batch.

    Args:
        logits_BTV: from the label's first token on.
        losses_B: training losses.
        work: the examples.
        batcher: knows the groups.
        batch: the examples as tensors.
        settings: the run.
    """
    own_B = losses_B.float()
    if settings.count == "all":
        own_B = label_losses(logits_BTV, work, batcher.groups, batch.labels_B.tolist())
    right_B = right_answers(logits_BTV, work, batcher.groups, batch)
    return torch.stack([own_B, right_B.float(), losses_B.float(), torch.ones_like(own_B)], 1)


def _spoilt(
    seen: Sequence[tuple[torch.Tensor, Work]],
    active: Sequence[Group],
    grad_KPD: torch.Tensor,
    processes: Processes,
) -> dict[str, list[int]]:
    """Which examples have a loss that is no number, or which groups a gradient; every process must call it."""
    mine = []
    for losses_B, work in seen:
        for place in torch.nonzero(~torch.isfinite(losses_B))[:, 0].tolist():
            mine.append((int(work.groups[place]), int(work.rows[place])))
    bad = sorted({pair for some in processes.gather(mine) for pair in some})
    found = {group.name: [row for index, row in bad if index == group.index] for group in active}
    if not bad:
        finite_K = torch.isfinite(grad_KPD).flatten(1).all(1).tolist()
        return {group.name: [] for group in active if not finite_K[group.index]} or found
    return {name: rows for name, rows in found.items() if rows}
