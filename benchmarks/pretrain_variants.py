"""What `bench_gpu.py` measures, each in a process of its own: random weights made on the device, drawn examples.

Weights, prompts and examples depend on names and seeds alone, so that all variants compute the same.
"""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from corpora.common.errors import UserError
from corpora.common.rng import generator
from corpora.rendering import Rendered, ends
from pretrain_data import SHAPES, VOCABULARY, products
from pretrain_sides import PROMPT_LEN, Products, synchronize

SENTINEL, LABELS = VOCABULARY - 29, (150, 2087, 4273)  # <extra_id_0> of T5's 32,100 ids; any three words
MEDIAN_TOKENS, SPREAD, LONGEST = (
    155,
    0.45,
    412,
)  # of a pair of news paragraphs: 271 tokens on average with the prompt
POOL = 8192  # examples drawn
RATE = 0.3  # x embedding RMS
CURVE_BATCH = 64  # examples of these updates, at most
CHECKED = 16  # examples of the check
# dtype, weights, then how far the loss may be apart, the least cosine of gradients, how far their norms may be apart.
CHECKS: dict[str, tuple[Any, ...]] = {
    "float32": ("float32", "full", 1e-4, 0.9999, 1e-2),
    "bfloat16": ("bfloat16", "full", 2e-2, 0.99, 0.05),
    "fp8": ("bfloat16", "fp8", 5e-2, 0.9, 0.2),
    "int8": ("bfloat16", "int8", 2e-2, 0.98, 0.05),
    "nf4": ("bfloat16", "nf4", 1e-1, 0.8, 0.3),
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


def random_model(shape: dict[str, Any], device: str, dtype: torch.dtype, weights: str = "full") -> Any:
    """A random T5 made on the device tensor by tensor; its layers quantised on the way where `weights` says so."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, decoder_start_token_id=0, pad_token_id=0, dropout_rate=0.0, use_cache=False, **shape
    )  # fmt: skip
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        if shape.get("tie_word_embeddings") is False:  # T5Config ties it whatever it is told
            model.lm_head = nn.Linear(config.d_model, VOCABULARY, bias=False)
    tied: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if parameter not in tied:
            drawn = _drawn(name, parameter.shape, _std(name, shape), device, dtype)
            if weights != "full" and _is_quantised(name):
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, _quantised(drawn, weights))
                continue
            tied[parameter] = nn.Parameter(drawn, requires_grad=False)
        setattr(module, leaf, tied[parameter])
    return model.eval()


def _is_quantised(name: str) -> bool:
    from pretrain.quantise import is_quantised

    return bool(is_quantised(name))


def _quantised(weight: torch.Tensor, weights: str) -> nn.Module:
    from pretrain.quantise import quantised_linear

    return quantised_linear(weight, weights)  # type: ignore[arg-type]


def _std(name: str, shape: dict[str, Any]) -> float | None:
    """transformers' own initialisation of T5; None: ones."""
    d, inner = shape["d_model"], shape["d_kv"] * shape["num_heads"]
    stds = {"shared": 1.0, "q": (d * shape["d_kv"]) ** -0.5, "o": inner**-0.5, "wo": shape["d_ff"] ** -0.5}
    kind = name.split(".")[-2]
    return None if "norm" in kind else stds.get(kind, d**-0.5)


def _drawn(name: str, size: torch.Size, std: float | None, device: str, dtype: torch.dtype) -> torch.Tensor:
    if std is None:
        return torch.ones(size, device=device, dtype=dtype)
    # Drawn in bfloat16 whatever the type, so that a model in float32 has the same weights.
    own = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.empty(size, device=device, dtype=torch.bfloat16).normal_(0, std, generator=own).to(dtype)


class DrawnCorpus:
    """Examples with the lengths of real pairs and ids drawn, in place of a `TaskCorpus`."""

    def __init__(self) -> None:
        rng = generator(0, "bench gpu")
        lengths = np.exp(rng.normal(np.log(MEDIAN_TOKENS), SPREAD, POOL)).clip(8, LONGEST)
        self._lengths = lengths.astype(np.int32)
        self._ids = rng.integers(1000, 30_000, int(LONGEST + POOL), np.int32)
        self._labels = rng.integers(0, len(LABELS), POOL)

    def lengths(self, rows: np.ndarray, prompt_len: int) -> np.ndarray:
        """Tokens of rows, int32 [B]."""
        return self._lengths[rows]

    def render_batch(self, rows: np.ndarray, tokenizer: object, prompt_len: int) -> Rendered:
        """The rows end to end."""
        ids = [self._ids[row : row + self._lengths[row]] for row in rows.tolist()]
        return Rendered(np.concatenate(ids), ends(self._lengths[rows]), self._labels[rows])

    def examples(self, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Inputs and targets one by one."""
        rendered = self.render_batch(rows, None, PROMPT_LEN)
        inputs = np.split(rendered.input_ids, rendered.offsets[1:-1])
        for ids, label in zip(inputs, rendered.labels.tolist(), strict=True):
            yield {"input_ids": ids, "target_ids": np.array([SENTINEL, LABELS[label]])}


class _Words:
    """A verbalizer of one-token words."""

    ids = tuple((word,) for word in LABELS)

    def __len__(self) -> int:
        return len(LABELS)

    def target_ids(self, label: int, closing: bool) -> np.ndarray:
        return np.array([SENTINEL, LABELS[label]], np.int32)


class Step:
    """The product's training step on a random backbone.

    Args:
        shape: fields of the configuration.
        device: where.
        dtype: `float32` or `bfloat16`.
        weights: how the backbone's layers are held.
    """

    def __init__(self, shape: dict[str, Any], device: str, dtype: str, weights: str) -> None:
        from pretrain.backbone import DTYPES, Backbone
        from pretrain.distributed import Processes
        from pretrain.forward import PromptedBackbone
        from pretrain.groups import Batcher, Group
        from pretrain.settings import PretrainSettings

        self.processes = Processes(0, 1, torch.device(device))
        backbone = Backbone(random_model(shape, device, DTYPES[dtype], weights), "random")
        self.net = PromptedBackbone(backbone).requires_grad_(False).eval()
        self.settings = PretrainSettings(
            out=Path(), corpora=Path(), backbone="none", formats=["sentence_pair"], prompt_len=PROMPT_LEN,
            learning_rate=RATE, schedule="constant",
        )  # fmt: skip
        self.corpus: Any = DrawnCorpus()
        words: Any = _Words()
        self.group = Group(0, "sentence_pair", self.corpus, words, range(POOL), np.arange(8))
        tokenizer: Any = type("Padding", (), {"pad_id": 0})
        self._batcher = Batcher([self.group], self.settings, tokenizer, 0, self.processes.device)
        self.restart()

    def restart(self) -> None:
        """Start again with the prompt that all variants start with."""
        from pretrain.prompts import PromptBank

        drawn = generator(0, "bench gpu prompt").standard_normal((PROMPT_LEN, self.net.model.config.d_model))
        start = torch.from_numpy(drawn.astype(np.float32))[None].to(self.processes.device)
        self.bank = PromptBank(start, [RATE], clip=1.0)

    def __call__(self, number: int, batch_size: int, batch_tokens: int) -> float:
        """One update; the mean loss of its examples."""
        from pretrain.step import train_step

        settings = self.settings.model_copy(update={"batch_size": batch_size, "batch_tokens": batch_tokens})
        sums_KS, _ = train_step(
            self.net, self.bank, self._batcher, [self.group], number, settings, self.processes
        )
        return float(sums_KS[0, 2] / sums_KS[0, 3])

    def rows(self, number: int, batch_size: int) -> np.ndarray:
        """The examples of an update."""
        return self.group.rows_of_step(number, batch_size, self.settings.seed)


def ours(plan: Plan, weights: str = "full") -> dict[str, Any]:
    """Rate, memory and losses of our step, at the best of the budgets."""
    step = Step(SHAPES[plan.shape], plan.device, "bfloat16", weights)
    found: dict[str, Any] = {"weights_gb": _gigabytes(torch.cuda.memory_allocated)}

    def rate(budget: int, least: float) -> Measured:
        return _rate(lambda number: _one(step, number, plan.batch_size, budget), least)

    found["tried"] = _largest_that_fits(plan.budgets, lambda budget: rate(budget, 0))
    best = int(_best(found["tried"]))
    found |= {"batch_tokens": best, **rate(best, plan.seconds)}
    if plan.curve:
        step.restart()
        size = min(CURVE_BATCH, plan.batch_size)
        found["losses"] = [step(number, size, best) for number in range(plan.curve)]
    return found


def _one(step: Step, number: int, batch_size: int, budget: int) -> int:
    step(number, batch_size, budget)
    lengths = step.corpus.lengths(step.rows(number, batch_size), PROMPT_LEN)
    return int((lengths + PROMPT_LEN).sum())


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
    for name, (dtype, weights, *least) in CHECKS.items():
        try:
            step = Step(SHAPES[plan.shape], plan.device, dtype, weights)
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
    step = Step(SHAPES[plan.shape], plan.device, "float32", "full")
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
