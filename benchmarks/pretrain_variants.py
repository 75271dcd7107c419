"""What `bench_gpu.py` measures, each in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
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
from pretrain_data import SHAPES, VOCABULARY, products, runs_of_equal_length
from pretrain_random import LONGEST, POOL, DrawnCorpus, Step, random_model
from pretrain_sides import PROMPT_LEN, Products, synchronize

CURVE_BATCH = 64  # examples of these updates, at most
CHECKED = 16  # examples of the check
FIXED_RUN = 16  # examples of about equal length where the padding does not depend on it
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

DRY_CHECKS = (
    "float32",
    "grouped",
    "checkpointing",
)  # what any CPU can compute, and no package need be there for
REPEATED = (
    2  # steps of ours that are measured over and over, after all of them ran: nothing is compiled in between
)

Measured = dict[str, Any]


class Found(dict[str, Any]):
    """What was found so far, kept in a file: who is stopped or fails leaves what it had."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, **more: object) -> None:
        """Write all of it and some more."""
        self.update(more)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self))
        os.replace(new, self._path)


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
        checks: in `CHECKS`, those that must be passed.
        curve: updates whose losses are written down, from the same start in every variant.
    """

    shape: str
    device: str
    batch_size: int
    budgets: tuple[int, ...]
    micro: tuple[int, ...]
    seconds: float
    checks: tuple[str, ...] = tuple(CHECKS)
    curve: int = 12


def ours(plan: Plan, found: Found, weights: str = "full", **options: Any) -> None:
    """Rate, memory and losses of our step, at the best of the budgets."""
    step = Step(SHAPES[plan.shape], plan.device, "bfloat16", weights, **options)
    found["weights_gb"] = _gigabytes(torch.cuda.memory_allocated)
    found["options"] = dataclasses.asdict(step.options)

    def rate(budget: int, least: float) -> Measured:
        return _rate(lambda number: _one(step, number, plan.batch_size, budget), least, REPEATED)

    best = _try_all(plan.budgets, rate, found, "batch_tokens")
    found.save(**rate(best, plan.seconds))
    found.save(predicted_gb=_predicted(plan, best, weights, step))
    if plan.curve:
        step.restart()
        size = min(CURVE_BATCH, plan.batch_size)
        found.save(losses=[step(number, size, best) for number in range(plan.curve)])


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


def peft(plan: Plan, found: Found, fixed: bool, compiled: bool = False) -> None:
    """Rate, memory and padding of Trainer with PEFT, at the fastest micro-batch."""
    from pretrain_rival import Choice, Rival

    model = random_model(SHAPES[plan.shape], plan.device, torch.bfloat16)
    corpus = DrawnCorpus()
    lengths = corpus.lengths(np.arange(POOL), PROMPT_LEN)
    rivals: dict[int, Rival] = {}

    def load(choice: Choice) -> Any:
        model.set_attn_implementation(choice.attention)
        return model

    with tempfile.TemporaryDirectory() as out:

        def rate(micro: int, least: float) -> Measured:
            # Runs as long as a micro-batch: a real run groups 50 steps at a time, and pads next to nothing.
            run = min(FIXED_RUN if fixed else micro, plan.batch_size)
            rows = runs_of_equal_length(lengths, plan.batch_size, run)
            rows = generator(0, "bench gpu rows").permutation(rows)
            if micro not in rivals:
                rivals[micro] = Rival(list(corpus.examples(rows)), LONGEST, plan.batch_size, load, Path(out))
            choice = Choice(fixed, micro=micro, compiled=compiled)
            one: dict[str, float] = {}

            def work(_: int) -> int:
                one.update(rivals[micro].round(choice))
                return int(one["tokens"])

            measured = _rate(work, least, 1, lambda: one["seconds"])
            return {**measured, "padding": 1 - one["tokens"] / one["padded_tokens"]}

        best = _try_all(plan.micro, rate, found, "micro")
        found.save(**rate(best, plan.seconds))


def _try_all(sizes: tuple[int, ...], rate: Callable[[int, float], Measured], found: Found, kind: str) -> int:
    """The size of the highest rate; all are tried, rising, until one does not fit the memory.

    After each, what it gave is saved as `tried`, and the best so far as what was found.

    Raises:
        RuntimeError: none could be measured.
    """
    tried: dict[str, Measured] = {}
    for size in sizes:
        try:
            tried[str(size)] = rate(size, 0)
        except torch.OutOfMemoryError:
            tried[str(size)] = {"failed": "out of memory"}
        except Exception as error:  # another size may yet do
            tried[str(size)] = {"failed": told(error)}
        found.save(tried=tried)
        if tried[str(size)].get("failed") == "out of memory":
            torch.cuda.empty_cache()
            break
        fitting = {int(one): its for one, its in tried.items() if "failed" not in its}
        if fitting:
            best = max(fitting, key=lambda one: fitting[one]["tokens_a_second"])
            found.save(**fitting[best], **{kind: best})
    if kind not in found:
        raise RuntimeError(f"no size could be measured: {tried}")
    return int(found[kind])


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _rate(
    work: Callable[[int], int], least: float, repeated: int, clock: Callable[[], float] | None = None
) -> Measured:
    """Tokens a second of works that tell their tokens, and the peak of memory, after a round that is not timed.

    Args:
        work: given its number, from 0 on, below `repeated`.
        least: seconds to keep on for; one round of all works at least.
        repeated: how many works there are. All of them run before any is timed, so that none is compiled then.
        clock: tells the seconds of the last call, where the work itself knows better.
    """
    for number in range(repeated):
        work(number)
    synchronize()
    _reset_peak()
    took, tokens, calls = 0.0, 0, 0
    while calls == 0 or took < least:
        for number in range(repeated):
            began = time.perf_counter()
            tokens += work(number)
            synchronize()
            took += clock() if clock else time.perf_counter() - began
        calls += repeated
    return {
        "tokens_a_second": tokens / took, "calls": calls, "peak_gb": _gigabytes(torch.cuda.max_memory_allocated),
        "reserved_gb": _gigabytes(torch.cuda.max_memory_reserved),
    }  # fmt: skip


def check(plan: Plan, found: Found) -> None:
    """Loss and prompt gradient of every way of computing beside the plain transformers model in float32."""
    loss, grad = _plain(plan)
    found.save(plain={"loss": loss})
    for name in plan.checks:
        try:
            one = _check(plan, name, loss, grad)
        except (ImportError, UserError) as error:
            one = {"skipped": str(error)}
        except Exception as error:  # the other ways are judged all the same
            one = {"ok": False, "failed": told(error)}
        found.save(**{name: one})


def _check(plan: Plan, name: str, loss: float, grad: torch.Tensor) -> Measured:
    """A way's loss and gradient beside the plain ones, float64 [P, D], and whether they are near enough."""
    dtype, weights, options, *least = CHECKS[name]
    step = Step(SHAPES[plan.shape], plan.device, dtype, weights, **options)
    own_loss = step(0, CHECKED, plan.budgets[0])
    assert step.bank.prompts_KPD.grad is not None
    own = step.bank.prompts_KPD.grad[0].double()
    apart = abs(own_loss / loss - 1)
    cosine = float(torch.nn.functional.cosine_similarity(own.flatten(), grad.flatten(), dim=0))
    norms = float(own.norm() / grad.norm())
    ok = apart <= least[0] and cosine >= least[1] and abs(norms - 1) <= least[2]
    return {"loss": own_loss, "apart": apart, "cosine": cosine, "norms": norms, "ok": ok}


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


def ceiling(plan: Plan, found: Found) -> None:
    """FLOP/s of the encoder's matrix products alone."""
    found.save(**Products(products(SHAPES[plan.shape]), plan.budgets[:2]).round())


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _gigabytes(of: Callable[[], int]) -> float | None:
    return of() / 1e9 if torch.cuda.is_available() else None
