"""`make bench-pretrain`: prompt pre-training beside Hugging Face's Trainer with PEFT's prompt tuning.

The same random backbone (T5-small's and T5-base's shape), the same examples, steps of equally many of them, the same
two decoder positions and the same counted target; tokens are those that are no padding, the prompt's among them. Sides:

    ours           the product's training step, bfloat16, the best of a few budgets of tokens
    peft_grouped   Trainer + PEFT, batches grouped by length, at the best of the settings that its user has: weights
                   in bfloat16 or float32 under autocast, SDPA or eager attention, examples of a micro-batch,
                   torch.compile or not
    peft_fixed     the same, padded to the format's longest input, as the released code does

Before anything is timed, loss and gradient of one prompt on the same examples must agree, or it stops.
Beside them, in the same rounds, the matrix products of the encoder's layers alone: what the machine can do at best.
`ceiling_share` is 4 x encoder weights x tokens / seconds, by that: a frozen encoder computes each product once forward and
once backward, to its input. Attention's own products, the decoder and the head are left out of the count.

Text: `PPT_DATA/text/en/bbc_news.jsonl.gz` where the variable is set, else generated, and it says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from common_bench import finish, in_turn
from corpora.common.rng import generator
from corpora.task_corpus import TaskCorpus
from pretrain_data import (
    SHAPES,
    attention_flops,
    build_corpora,
    encoder_weights,
    products,
    runs_of_equal_length,
    save_backbone,
)
from pretrain_sides import PROMPT_LEN, Ours, Products, Side, Task

BATCH = 64  # examples of an optimiser step
EXAMPLES = {
    "tiny": 64,
    "t5-small": 256,
    "t5-base": 64,
}  # of a round: enough for seconds, few enough for minutes
BUDGETS = (2048, 4096, 8192, 16384)  # encoder tokens of our micro-batches, tried before the rounds
RUN = 16  # examples of about equal length that stand for one place in the spread
MICRO = {
    "cpu": (4, 8, 16),
    "cuda": (16, 32, 64),
}  # examples of the rivals' micro-batches, tried before the rounds
# Shapes with which the rivals try torch.compile too, which takes minutes with base. In a trial on one core with T5-small's
# it made the grouped rival 13 % slower.
COMPILED = ("t5-small",)
TRIED, TRIALS = 32, 2  # examples of a trial, and how often it is made
CHECKED = 32  # examples on which the sides must agree
LOSS_APART, COSINE, NORMS_APART = 0.02, 0.98, 0.05  # what bfloat16 leaves of equal losses and gradients
CEILING_TOKENS = (1024, 4096)  # rows of the products


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="t5-small,t5-base")
    parser.add_argument("--only", default="ours,grouped,fixed", help="sides, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, help="of a round; a multiple of 64")
    parser.add_argument("--format", default="sentence_pair")
    parser.add_argument("--quick", action="store_true", help="one round of 64 examples, nothing tried before")
    parser.add_argument("--set", nargs="*", default=[], help="settings of our run, such as compiled=true")
    parser.add_argument("--profile", action="store_true", help="print what takes longest in our step")
    given = parser.parse_args()
    sides = given.only.split(",")
    ratios: dict[str, float] = {}
    shares: dict[str, float] = {}
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        origin = build_corpora(folder / "corpora", given.format)
        for shape in given.shapes.split(","):
            found = measure(folder, shape, sides, given)
            ratios |= {f"{shape}/peft_{side}": value for side, value in found.pop("ratios").items()}
            if "ceiling_share" in found:
                shares[shape] = found.pop("ceiling_share")
            raw[shape] = found
    for shape, share in shares.items():
        print(f"{shape:<32} {share:.1%} of the matrix products' ceiling")
    settings = {
        "text": origin, "format": given.format, "rounds": given.rounds, "batch_size": BATCH,
        "prompt_len": PROMPT_LEN, "sides": sides, "set": given.set,
    }  # fmt: skip
    finish("pretrain", settings, ratios, raw, {"ceiling_share": shares})


def measure(folder: Path, shape: str, sides: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """All sides of one shape; and `ratios` and `ceiling_share` of ours."""
    examples = BATCH if given.quick else given.examples or EXAMPLES[shape]
    task = Task(
        folder / shape, folder / "corpora", given.format, _rows(folder, given.format, examples), BATCH
    )
    save_backbone(task.backbone, SHAPES[shape], folder / "corpora" / "tokenizer")
    lengths = TaskCorpus.open(folder / "corpora", given.format).lengths(np.array(task.rows), PROMPT_LEN)
    lengths = lengths + PROMPT_LEN
    print(
        f"\n{shape}: {examples} examples a round, {lengths.mean():.0f} tokens on average with the prompt",
        flush=True,
    )
    works: dict[str, Any] = {}
    results: dict[str, list[dict[str, float]]] = {}
    open_sides: list[Side] = []
    found: dict[str, Any] = {
        "examples": examples,
        "mean_tokens": float(lengths.mean()),
        "tried": {},
        "choices": {},
    }

    def add(name: str, side: Side, **arguments: object) -> None:
        results[name] = []
        works[name] = lambda: results[name].append(side.ask("round", **arguments))

    ceiling = Side(Products, products(SHAPES[shape]), CEILING_TOKENS[: 1 if given.quick else None])
    open_sides.append(ceiling)
    add("ceiling", ceiling)
    judged = None
    changes = {key: yaml.safe_load(value) for key, value in (one.split("=") for one in given.set)}
    if "ours" in sides:
        ours = Side(Ours, task, folder / f"run-{shape}", changes)
        open_sides.append(ours)
        prompt = ours.ask("start")
        judged = prompt, *ours.ask("first_step", examples=CHECKED)
        budget, found["tried"]["ours"] = _best_budget(ours, given.quick)
        add("ours", ours, batch_tokens=budget)
        if given.profile:
            print(ours.ask("profile", batch_tokens=budget))
    rivals = [name for name in ("grouped", "fixed") if name in sides]
    if rivals:
        from pretrain_rival import Choice, TaskRival

        choice = Choice(False, attention="sdpa" if torch.cuda.is_available() else "eager")
    for name in rivals:
        rival = Side(TaskRival, task, folder / f"{name}-{shape}")
        open_sides.append(rival)
        choice = dataclasses.replace(choice, fixed=name == "fixed", compiled=False)
        if not given.quick:
            choice, found["tried"][name] = _best_choice(rival, choice, shape)
        found["choices"][name] = dataclasses.asdict(choice)
        if judged is not None:
            _check_equal(rival, choice, *judged)
        add(name, rival, choice=choice)
    in_turn(works, 1 if given.quick else given.rounds)
    for side in open_sides:
        side.close()
    return found | _summary(shape, lengths, results)


def _rows(folder: Path, format: str, examples: int) -> tuple[int, ...]:
    """Training examples of the corpus's own spread of lengths, runs of equal length in an order drawn."""
    corpus = TaskCorpus.open(folder / "corpora", format)
    rows = runs_of_equal_length(corpus.lengths(corpus.rows("train"), PROMPT_LEN), examples, RUN)
    runs = generator(0, "bench pretrain rows").permutation(np.asarray(rows).reshape(-1, RUN))
    return tuple(runs.ravel().tolist())


def _best_budget(ours: Side, quick: bool) -> tuple[int, dict[str, float]]:
    """The budget of tokens with the highest rate, and the rates of all."""
    rates: dict[str, float] = {}
    for budget in BUDGETS[1:2] if quick else BUDGETS:
        for _ in range(2):  # the first time takes memory
            one = ours.ask("round", batch_tokens=budget, examples=TRIED)
        rates[str(budget)] = one["tokens"] / one["seconds"]
        print(f"ours, batch_tokens {budget}: {rates[str(budget)]:,.0f} tokens/s", flush=True)
    return int(max(rates, key=rates.__getitem__)), rates


def _best_choice(rival: Side, choice: Any, shape: str) -> tuple[Any, dict[str, float]]:
    """The rival's fastest settings, and the rates of all that were tried, in examples a second.

    Args:
        rival: padding each input to its batch's longest it starts from nothing; to a fixed length it keeps the weights and
            attention that it is given.
        choice: where it starts.
        shape: of the backbone.
    """
    found: dict[Any, float] = {}

    def better(choices: list[Any]) -> Any:
        new = [one for one in choices if one not in found]
        for _ in range(TRIALS):  # in turn, as the machine may drift; the first also takes memory, or compiles
            for one in new:
                took = rival.ask("round", choice=one, examples=TRIED)["seconds"]
                found[one] = max(TRIED / took, found.get(one, 0.0))
        return max(found, key=found.__getitem__)

    if not choice.fixed:
        kinds = itertools.product(("bfloat16", "autocast"), ("eager", "sdpa"))
        better([dataclasses.replace(choice, weights=one, attention=other) for one, other in kinds])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = max(found, key=found.__getitem__, default=choice)
    best = better([dataclasses.replace(best, micro=micro) for micro in MICRO[device]])
    if shape in COMPILED:
        best = better([dataclasses.replace(best, compiled=True)])
    rates = {
        f"{one.weights} {one.attention} {one.micro}" + " compiled" * one.compiled: rate
        for one, rate in found.items()
    }
    told = ", ".join(f"{key}: {rate:.2f}" for key, rate in rates.items())
    print(f"{'fixed' if choice.fixed else 'grouped'}, examples/s: {told}", flush=True)
    return best, rates


def _check_equal(rival: Side, choice: Any, prompt: np.ndarray, loss: float, grad: np.ndarray) -> None:
    """Stop where the sides do not compute the same."""
    theirs, their_grad = rival.ask("first_step", choice=choice, examples=CHECKED, prompt=prompt)
    cosine = float((grad * their_grad).sum() / np.linalg.norm(grad) / np.linalg.norm(their_grad))
    scale = float(np.linalg.norm(grad) / np.linalg.norm(their_grad))
    told = f"loss {loss:.4f} beside {theirs:.4f}, gradients' cosine {cosine:.4f}, ratio of norms {scale:.4f}"
    print(f"check on {CHECKED} examples: {told}", flush=True)
    if not (abs(loss / theirs - 1) < LOSS_APART and cosine > COSINE and abs(scale - 1) < NORMS_APART):
        raise SystemExit(f"the sides do not compute the same: {told}")


def _summary(shape: str, lengths: np.ndarray, results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Rates, ratios and shares of the ceiling, from the rounds of all sides."""
    products_found = results.pop("ceiling")
    ceilings = [max(one[dtype] for dtype in Products.DTYPES) for one in products_found]
    counted = 4.0 * encoder_weights(SHAPES[shape]) * float(lengths.sum())
    attended = attention_flops(SHAPES[shape], lengths)
    found: dict[str, Any] = {
        "ceiling_flops": {
            dtype: statistics.median(one[dtype] for one in products_found) for dtype in Products.DTYPES
        },
        "flops_a_round": counted,
        "attention_flops_a_round": attended,
        "rounds": results | {"ceiling": products_found},
        "ratios": {},
    }
    print(
        f"{shape}: 4 x {encoder_weights(SHAPES[shape]) / 1e6:.2f} M encoder weights x {int(lengths.sum()):,} tokens = "
        f"{counted / 1e12:.3f} TFLOP a round, attention's own products {attended / 1e12:.3f} more; ceiling "
        + ", ".join(f"{dtype} {rate / 1e9:,.0f}" for dtype, rate in found["ceiling_flops"].items())
        + " GFLOP/s"
    )
    for name, rounds in results.items():
        took = statistics.median(one["seconds"] for one in rounds)
        padding = 1 - rounds[0]["tokens"] / rounds[0]["padded_tokens"]
        shares = [counted / one["seconds"] / top for one, top in zip(rounds, ceilings, strict=True)]
        found[name] = {
            "tokens_a_second": rounds[0]["tokens"] / took,
            "examples_a_second": rounds[0]["examples"] / took,
            "padding": padding,
            "ceiling_share": statistics.median(shares),
            "ceiling_share_with_attention": statistics.median(shares) * (1 + attended / counted),
        }
        print(
            f"{shape} {name:<10} {found[name]['tokens_a_second']:>10,.0f} tokens/s {found[name]['examples_a_second']:>8.1f} "
            f"examples/s {padding:>6.1%} padding {found[name]['ceiling_share']:>6.1%} of the ceiling",
            flush=True,
        )
        if name != "ours" and "ours" in results:
            pairs = zip(rounds, results["ours"], strict=True)
            found["ratios"][name] = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
    if "ours" in found:
        found["ceiling_share"] = found["ours"]["ceiling_share"]
    return found


if __name__ == "__main__":
    main()
