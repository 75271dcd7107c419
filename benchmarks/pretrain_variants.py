"""What `bench_gpu.py` measures, each in a process of its own."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpora.common.errors import UserError
from corpora.common.rng import generator
from pretrain_data import SHAPES, VOCABULARY, products
from pretrain_random import LONGEST, POOL, DrawnCorpus, Step, random_model
from pretrain_sides import PROMPT_LEN, Products, synchronize

CURVE_BATCH = 64  # examples of these updates, at most
CHECKED = 16  # examples of the check
# dtype, weights, settings; then how far the loss may be apart, the least cosine of gradients, how far their norms may be.
CHECKS: dict[str, tuple[Any, ...]] = {
    "float32": ("float32", "full", {"attention": "grouped", "compiled": False}, 1e-4, 0.9999, 1e-2),
    "grouped": ("bfloat16", "full", {"attention": "grouped", "compiled": False}, 2e-2, 0.99, 0.05),
    "flex": ("bfloat16", "full", {"attention": "flex", "compiled": False}, 2e-2, 0.99, 0.05),
    "compiled": ("bfloat16", "full", {"attention": "flex", "compiled": True}, 2e-2, 0.99, 0.05),
    "checkpointing": ("bfloat16", "full", {"checkpointing": True}, 2e-2, 0.99, 0.05),
    "fp8": ("bfloat16", "fp8", {}, 5e-2, 0.9, 0.2),
    "int8": ("bfloat16", "int8", {}, 2e-2, 0.98, 0.05),
    "nf4": ("bfloat16", "nf4", {}, 1e-1, 0.8, 0.3),
}


Measured = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How a variant is measured.

    Attributes:
        shape: in `SHAPES`.
        device: `cuda` or `cpu`.
        batch_size: examples of an optimiser step.
        budgets: encoder tokens of our micro-batches, all tried, rising.
        micro: examples of the rival's micro-batches, all tried, rising.
        seconds: that the best one is measured for.
        curve: updates whose losses are written down, from the same start in every variant.
    """

    shape: str
    device: str
    batch_size: int
    budgets: tuple[int, ...]
    micro: tuple[int, ...]
    seconds: float
    curve: int = 12


def ours(plan: Plan, weights: str = "full", **options: Any) -> dict[str, Any]:
    """Rate, memory and losses of our step, at the best of the budgets."""
    step = Step(SHAPES[plan.shape], plan.device, "bfloat16", weights, **options)
    found: dict[str, Any] = {"weights_gb": _gigabytes(torch.cuda.memory_allocated)}
    found["options"] = dataclasses.asdict(step.options)

    def rate(budget: int, least: float) -> Measured:
        return _rate(lambda number: _one(step, number, plan.batch_size, budget), least)

    found["tried"] = _largest_that_fits(plan.budgets, lambda budget: rate(budget, 0))
    best = int(_best(found["tried"]))
    found |= {"batch_tokens": best, **rate(best, plan.seconds)}
    found["predicted_gb"] = _predicted(plan, best, weights, step)
    if plan.curve:
        step.restart()
        size = min(CURVE_BATCH, plan.batch_size)
        found["losses"] = [step(number, size, best) for number in range(plan.curve)]
    return found


def _one(step: Step, number: int, batch_size: int, budget: int) -> int:
    step(number, batch_size, budget)
    lengths = step.corpus.lengths(step.rows(number, batch_size), PROMPT_LEN)
    return int((lengths + PROMPT_LEN).sum())


def _predicted(plan: Plan, budget: int, weights: str, step: Step) -> float:
    """What `ppt plan` expects the peak of allocated memory to be."""
    from pretrain.devices import this_device
    from pretrain.plan import predict
    from pretrain.shapes import Shape
    from pretrain.strategy import Strategy, Workload

    fields = dict(SHAPES[plan.shape])
    gated = "gated" in fields.pop("feed_forward_proj", "")
    tied = fields.pop("tie_word_embeddings", True)
    shape = Shape(
        name=plan.shape, vocab_size=VOCABULARY, num_decoder_layers=fields["num_layers"], gated=gated, tied=tied, **fields
    )  # fmt: skip
    lengths = (step.corpus.lengths(np.arange(POOL), PROMPT_LEN) + PROMPT_LEN).astype(np.float64)
    work = Workload(
        prompts=1, examples=plan.batch_size, tokens=float(lengths.mean()),
        attended=float((lengths**2).sum() / lengths.sum()), longest=int(lengths.max()),
    )  # fmt: skip
    strategy = Strategy(weights=weights, checkpointing=step.options.checkpointing)
    device, _ = this_device(plan.device == "cuda", 1)
    return float(predict(shape, device, strategy, budget, work).memory.allocated) / 1e9


def peft(plan: Plan, fixed: bool, compiled: bool = False) -> dict[str, Any]:
    """Rate and memory of Trainer with PEFT, at the largest micro-batch that fits or a smaller, faster one."""
    from pretrain_rival import Choice, Rival

    rows = generator(0, "bench gpu rows").permutation(POOL)[: plan.batch_size]
    model = random_model(SHAPES[plan.shape], plan.device, torch.bfloat16)

    def load(choice: Choice) -> Any:
        model.set_attn_implementation(choice.attention)
        return model

    with tempfile.TemporaryDirectory() as out:
        rival = Rival(list(DrawnCorpus().examples(rows)), LONGEST, plan.batch_size, load, Path(out))

        def rate(micro: int, least: float) -> Measured:
            choice = Choice(fixed, micro=micro, compiled=compiled)
            one: dict[str, float] = {}

            def work(_: int) -> int:
                one.update(rival.round(choice))
                return int(one["tokens"])

            return _rate(work, least, lambda: one["seconds"])

        tried = _largest_that_fits(plan.micro, lambda micro: rate(micro, 0))
        best = int(_best(tried))
        return {"tried": tried, "micro": best, **rate(best, plan.seconds)}


def _best(tried: dict[str, Measured]) -> str:
    fitting = {size: one["tokens_a_second"] for size, one in tried.items() if "tokens_a_second" in one}
    if not fitting:
        raise torch.OutOfMemoryError("not even the smallest fits")
    return max(fitting, key=fitting.__getitem__)


def _largest_that_fits(sizes: tuple[int, ...], rate: Callable[[int], Measured]) -> dict[str, Measured]:
    """What `rate` gives for rising sizes, until one does not fit the memory."""
    found: dict[str, Measured] = {}
    for size in sizes:
        try:
            found[str(size)] = rate(size)
        except torch.OutOfMemoryError:
            found[str(size)] = {}
            torch.cuda.empty_cache()
            break
    return found


def _rate(work: Callable[[int], int], least: float, clock: Callable[[], float] | None = None) -> Measured:
    """Tokens a second of a work that tells its tokens, and the peak of memory, after one that is not timed.

    Args:
        work: given how often it was called before.
        least: seconds to keep on for; one call at least.
        clock: tells the seconds of the last call, where the work itself knows better.
    """
    work(0)
    _reset_peak()
    took, tokens, number = 0.0, 0, 0
    while number == 0 or took < least:
        number += 1
        began = time.perf_counter()
        tokens += work(number)
        synchronize()
        took += clock() if clock else time.perf_counter() - began
    return {
        "tokens_a_second": tokens / took, "calls": number, "peak_gb": _gigabytes(torch.cuda.max_memory_allocated),
        "reserved_gb": _gigabytes(torch.cuda.max_memory_reserved),
    }  # fmt: skip


def check(plan: Plan) -> dict[str, Any]:
    """Loss and prompt gradient of every way of computing beside the plain transformers model in float32."""
    loss, grad = _plain(plan)
    found: dict[str, Any] = {"plain": {"loss": loss}}
    for name, (dtype, weights, options, *least) in CHECKS.items():
        try:
            step = Step(SHAPES[plan.shape], plan.device, dtype, weights, **options)
            own_loss = step(0, CHECKED, plan.budgets[0])
        except (ImportError, UserError) as error:
            found[name] = {"skipped": str(error)}
            continue
        assert step.bank.prompts_KPD.grad is not None
        own = step.bank.prompts_KPD.grad[0].double()
        apart = abs(own_loss / loss - 1)
        cosine = float(torch.nn.functional.cosine_similarity(own.flatten(), grad.flatten(), dim=0))
        norms = float(own.norm() / grad.norm())
        ok = apart <= least[0] and cosine >= least[1] and abs(norms - 1) <= least[2]
        found[name] = {"loss": own_loss, "apart": apart, "cosine": cosine, "norms": norms, "ok": ok}
    return found


def _plain(plan: Plan) -> tuple[float, torch.Tensor]:
    """The plain model's loss on the first step's examples, padded, and the gradient of the prompt, float64 [P, D]."""
    step = Step(SHAPES[plan.shape], plan.device, "float32", attention="grouped", compiled=False)
    examples = list(step.corpus.examples(step.rows(0, CHECKED)))
    prompt = step.bank.prompts_KPD.detach()[0].requires_grad_(True)
    model = random_model(SHAPES[plan.shape], plan.device, torch.float32)
    longest = max(len(one["input_ids"]) for one in examples)
    ids = np.zeros((CHECKED, longest), np.int64)
    mask = np.zeros((CHECKED, PROMPT_LEN + longest), np.int64)
    for row, one in enumerate(examples):
        ids[row, : len(one["input_ids"])] = one["input_ids"]
        mask[row, : PROMPT_LEN + len(one["input_ids"])] = 1
    targets = torch.tensor(np.stack([one["target_ids"] for one in examples]), device=plan.device)
    embeds = model.shared(torch.from_numpy(ids).to(plan.device))
    logits = model(
        inputs_embeds=torch.cat([prompt.expand(CHECKED, -1, -1), embeds], 1),
        attention_mask=torch.from_numpy(mask).to(plan.device),
        decoder_input_ids=torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :1]], 1),
    ).logits
    loss = torch.nn.functional.cross_entropy(logits[:, 1], targets[:, 1])
    loss.backward()
    assert prompt.grad is not None
    return float(loss.detach()), prompt.grad.double()


def ceiling(plan: Plan) -> dict[str, Any]:
    """FLOP/s of the encoder's matrix products alone."""
    return Products(products(SHAPES[plan.shape]), plan.budgets[:2]).round()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _gigabytes(of: Callable[[], int]) -> float | None:
    return of() / 1e9 if torch.cuda.is_available() else None
