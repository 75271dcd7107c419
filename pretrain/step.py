"""One update of the prompts: the gradients of all micro-batches of all processes, one small message, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from corpora.common.errors import MachineError
from pretrain.batching import Targets, example_losses
from pretrain.checkpoint import last_good
from pretrain.distributed import Processes
from pretrain.evaluation import label_losses, right_answers
from pretrain.forward import run_batch
from pretrain.groups import Batcher, Group, Work, share_out
from pretrain.prompts import PromptBank
from pretrain.settings import PretrainSettings, learning_rate_scale

REMEDY = "try a lower learning_rate, or dtype float32"


def train_step(
    net: torch.nn.Module,
    bank: PromptBank,
    batcher: Batcher,
    active: Sequence[Group],
    step: int,
    settings: PretrainSettings,
    processes: Processes,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[torch.Tensor, bool]:
    """One update of the active prompts: sum over prompts of the mean loss over each prompt's own examples.

    Args:
        net: what `deepspeed_module` gave.
        bank: the K prompts.
        batcher: makes batches of examples.
        active: groups that learn.
        step: updates made before this one.
        settings: the run.
        processes: of the job; every one of them calls this.
        should_stop: asked once.

    Returns:
        [K, 5] sums over this step's examples: label loss, right answers, training loss, examples; and the gradient
        norm. Second, whether any process was asked to stop.

    Raises:
        MachineError: a loss or gradient is not finite; nothing was updated.
    """
    bank.zero_grad()
    k = len(bank.prompts_KPD)
    picks = [group.rows_of_step(step, settings.batch_size, settings.seed) for group in active]
    sums_KS = torch.zeros(k, 4, device=processes.device)
    seen: list[tuple[torch.Tensor, Work]] = []
    for work in share_out(active, picks, settings, processes.rank, processes.world):
        batch = batcher.batch(work, 1.0 / settings.batch_size)
        counted_from = 0 if settings.count == "all" else 1
        (logits_BTV,) = run_batch(net, bank.prompts_KPD, batch, first=counted_from)
        losses_B = example_losses(logits_BTV, batch)
        (losses_B * batch.example_weights_B).sum().backward()
        if work.counts:
            sums_KS.index_add_(
                0,
                torch.from_numpy(work.groups).to(processes.device),
                _measured(logits_BTV[:, 1 - counted_from :], losses_B, work, batcher, batch, settings),
            )
            seen.append((losses_B.detach(), work))

    grad = bank.prompts_KPD.grad
    assert grad is not None  # every process has at least one micro-batch
    # One small message a step: gradients, sums and the wish to stop.
    wish = torch.tensor([float(should_stop())], device=processes.device)
    message = processes.sum(torch.cat([grad.flatten(), sums_KS.flatten(), wish]))
    grad.copy_(message[: grad.numel()].view_as(grad))
    sums_KS = message[grad.numel() : -1].view_as(sums_KS)
    if not bool(torch.isfinite(message).all()):
        raise MachineError(_not_finite(seen, batcher, step, settings, processes))
    active_K = torch.zeros(k, dtype=torch.bool, device=processes.device)
    active_K[[group.index for group in active]] = True
    scale_K = torch.full((k,), learning_rate_scale(settings, step), device=processes.device)
    norms_K = bank.step(scale_K, active_K)
    return torch.cat([sums_KS, norms_K[:, None].to(sums_KS)], 1).cpu(), bool(message[-1] > 0)


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


def _not_finite(
    seen: Sequence[tuple[torch.Tensor, Work]],
    batcher: Batcher,
    step: int,
    settings: PretrainSettings,
    processes: Processes,
) -> str:
    """Say which step and which examples have a loss that is no number; every process must call it."""
    mine = []
    for losses_B, work in seen:
        for place in torch.nonzero(~torch.isfinite(losses_B))[:, 0].tolist():
            mine.append((batcher.groups[int(work.groups[place])].name, int(work.rows[place])))
    bad = sorted({pair for some in processes.gather(mine) for pair in some})
    where = "; ".join(
        f"{name} examples {', '.join(str(row) for of, row in bad if of == name)}"
        for name in sorted({name for name, _ in bad})
    )
    what = f"the loss is not finite ({where})" if bad else "the losses are finite but a gradient is not"
    return f"step {step + 1}: {what}; {last_good(settings.out)}; {REMEDY}"
