"""`make bench-fewshot`: five seeds x four learning rates of one task, together, one by one, and with PEFT in a plain loop.

The same backbone, draws, orders, starting prompts, optimiser steps and dev scores on all sides, 32 examples to train and 32 to
choose by, in batches of 16:

    together     `ppt fewshot` with all cells at once, as it does it by default, and at the best of the settings tried
    one_by_one   `ppt fewshot` with `prompts_together: 1`, in one process with all threads
    processes    both in as many processes as there are cores, a thread each; in the first round alone
    peft_loop    PEFT's prompt tuning in a plain training loop, one cell after the other, at the best of its settings: weights in
                 bfloat16 or float32, eager or SDPA attention, batches in one pass or in two sorted by length, torch.compile

Each side runs in a fresh process in each round, in turn; its seconds begin when libraries are imported and nothing is loaded
(several processes of ours are started by the command, whose own imports then count). Before that, loss and gradient of the first
batch must agree between ours and PEFT's, and after it every cell's dev loss before training, or it stops.

Beside them the matrix products of the encoder's layers alone, by one process with all threads and by a process a core: the
higher rate is what the machine can do. `ceiling_share` is the operations of the encoder's own products (4 x weights x
tokens of training examples, 2 x of dev examples) / seconds, by that; what a side could gain at most is one over it.

Shapes: the pocket backbone and T5-base's on a CPU, T5-large's and T5-XXL's where there is a GPU. Text: for the pocket backbone its own world's;
else a set of `PPT_DATA` where that is set, else generated, and it says so. `--dry-run` goes through everything with a tiny shape.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs where nothing is installed

import numpy as np

from common_bench import finish
from fewshot_data import PLANS, Count, Ground, Plan, count, prepare
from fewshot_figures import figures
from fewshot_sides import Cells, LoopCell, OneThread, Ours
from pretrain_data import products
from pretrain_sides import Products, Side

DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}  # a GPU's tensor cores halve float32's rate
BUDGETS = {"cpu": (2048, 4096, 8192), "cuda": (32768, 65536)}  # encoder tokens of our micro-batches
CEILING_TOKENS = (1024, 4096)  # rows of the products
AIMS = {"pocket/one_by_one": 2.0, "t5-large/one_by_one": 5.0}
COMPILED = {"cpu": ("pocket",), "cuda": ("t5-large",)}  # where it may end within the bench's time
ONCE = "_processes"  # sides of one round
LOSS_APART, COSINE, NORMS_APART = 0.02, 0.98, 0.05  # what bfloat16 leaves of equal losses and gradients
Result = dict[str, Any]
Values = dict[str, Any]


def main() -> None:
    """Run the benchmark."""
    device = _device()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="t5-large,t5-xxl" if device == "cuda" else "pocket,t5-base")
    parser.add_argument("--task", default="sst2", help="a set of PPT_DATA, for the shapes of T5")
    parser.add_argument("--rounds", type=int, help="instead of the shape's own")
    parser.add_argument(
        "--epochs", type=int, help="over the 32 training examples, instead of the shape's own"
    )
    parser.add_argument("--untried", action="store_true", help="the default settings of each side")
    parser.add_argument("--only", help="sides, with commas between, instead of the shape's own")
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape on a CPU, few cells")
    given = parser.parse_args()
    if given.dry_run:
        given.shapes, device = "tiny", "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    ratios: dict[str, float] = {}
    shares: dict[str, float] = {}
    raw: dict[str, Any] = {}
    for shape in given.shapes.split(","):
        given_by_hand = {name: value for name in ("rounds", "epochs") if (value := getattr(given, name))}
        if given.only:
            given_by_hand["sides"] = tuple(given.only.split(","))
        plan = dataclasses.replace(PLANS.get(shape, Plan()), **given_by_hand)
        with tempfile.TemporaryDirectory() as folder:
            ground = prepare(Path(folder), shape, plan, given.task)
            bench = Bench(shape, plan, ground, device, given.untried)
            raw[shape] = bench.measure()
        ratios |= {f"{shape}/{rival}": value for rival, value in raw[shape].pop("ratios").items()}
        if "best" in raw[shape]:
            shares[shape] = raw[shape][raw[shape]["best"]]["ceiling_share"]
    aims = [
        {"ratio": name, "bound": bound, "value": ratios[name], "met": ratios[name] >= bound}
        for name, bound in AIMS.items()
        if name in ratios
    ]
    for aim in aims:
        print(
            f"{aim['ratio']}: {aim['value']:.2f} x, aim {aim['bound']:.0f} x: {'met' if aim['met'] else 'NOT MET'}"
        )
    settings = {"shapes": given.shapes, "task": given.task, "device": device}
    finish("fewshot", settings, ratios, raw, {"ceiling_share": shares, "aims": aims})
    if wrong := [f"{shape} {name}" for shape in raw for name in raw[shape]["failed"]]:
        raise SystemExit(f"failed: {', '.join(wrong)}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Bench:
    """One shape."""

    def __init__(self, shape: str, plan: Plan, ground: Ground, device: str, untried: bool) -> None:
        self._shape, self._plan, self._ground, self._device = shape, plan, ground, device
        self._sides, self._untried = plan.sides, untried or shape == "tiny"
        self._tried: dict[str, dict[str, Any]] = {"together": {}, "one_by_one": {}, "peft_loop": {}}
        laid_open = Side(Cells, ground.values)
        self._cells: list[LoopCell] = laid_open.ask("all")
        self._first_step = laid_open.ask("first_step")
        laid_open.close()
        alone = plan.rates[: plan.rates_alone]
        names = {f"{seed} {rate:g}" for seed in plan.seeds for rate in alone}
        self._alone = [cell for cell in self._cells if cell.name in names]
        self._count = self._counted(self._cells)
        self._repeats = len(plan.rates) / len(alone)

    def measure(self) -> Result:
        """Trials, the check, rounds; the figures, with `ratios` and the name of our `best` side."""
        plan, counted = self._plan, self._count
        steps = len(self._cells[0].order)
        print(
            f"\n{self._shape}: {len(self._cells)} cells of {steps} steps and {len(self._cells[0].evaluated)} dev scores, "
            f"{counted.train_tokens / counted.train_examples:.0f} tokens an example with the prompt of {plan.prompt_len}; "
            f"text: {self._ground.origin}",
            flush=True,
        )
        works = self._works()
        ceilings: list[dict[str, float]] = []
        rounds: dict[str, list[Result]] = {name: [] for name in works}
        failed: dict[str, str] = {}
        for number in range(plan.rounds):
            ceilings.append(self._ceiling())
            for name in works:
                if name in failed or (number and name.endswith(ONCE)):
                    continue
                try:
                    rounds[name].append(works[name]())
                except RuntimeError as error:  # the others are measured all the same
                    failed[name] = str(error).strip().splitlines()[-1]
                    del rounds[name]
                told = f"failed: {failed[name]}" if name in failed else f"{rounds[name][-1]['seconds']:.1f} s"
                print(f"round {number + 1}/{plan.rounds}  {name}: {told}", flush=True)
        self._check_same_work(rounds)
        grid = {
            "text": self._ground.origin,
            "cells": len(self._cells),
            "steps": steps,
            "dev_scores": len(self._cells[0].evaluated),
            "plan": dataclasses.asdict(plan),
            "tried": self._tried,
            "failed": failed,
        }
        return figures(self._shape, grid, counted, rounds, ceilings)

    def _counted(self, cells: list[LoopCell]) -> Count:
        train, dev = zip(*(cell.lengths(self._plan.prompt_len) for cell in cells), strict=True)
        return count(self._ground.fields, np.concatenate(train), np.concatenate(dev))

    def _works(self) -> dict[str, Any]:
        """What is measured in each round, by name, each at the settings that its trials chose."""
        values, cores = self._ground.values, len(os.sched_getaffinity(0))
        many = {"prompts_together": len(self._cells), "processes": 1}
        one: Values = {"prompts_together": 1, "processes": 1}
        if self._repeats > 1:
            one["learning_rates"] = values["learning_rates"][: self._plan.rates_alone]
        works: dict[str, Any] = {}
        dtype = DTYPES[self._device][-1]
        if "default" in self._sides:
            works["default"] = lambda: self._ours({})
        if "together" in self._sides:
            best = {**many, **self._best("together", many, [None, *BUDGETS[self._device]])}
            works["together"] = lambda: self._ours(best)
            dtype = best["dtype"]
        if "one_by_one" in self._sides:
            alone = {**one, **self._best("one_by_one", one, [None])}
            works["one_by_one"] = lambda: self._scaled(self._ours(alone))
        if "processes" in self._sides and self._device == "cpu" and cores > 1:
            # As many processes as cores, a thread each: beside one by one in as many.
            each = -(-len(self._cells) // cores)
            works["together_processes"] = lambda: self._ours(
                {"processes": cores, "prompts_together": each, "dtype": dtype}
            )
            works["one_by_one_processes"] = lambda: self._scaled(
                self._ours({**one, "processes": cores, "dtype": dtype})
            )
        if "peft_loop" in self._sides and self._has_peft():
            choice = self._best_choice()
            self._check_equal(choice)
            works["peft_loop"] = lambda: self._scaled(self._peft(choice))
        return works

    def _ours(self, changes: Values) -> Result:
        side = Side(Ours)
        result: Result = side.ask("run", values={**self._ground.values, **changes})
        side.close()
        return {**result, "tuning": _tuning(result), "settings": changes}

    def _peft(self, choice: Any) -> Result:
        side = self._peft_side()
        result: Result = side.ask("run", choice=choice)
        side.close()
        return {**result, "tuning": _tuning(result), "settings": dataclasses.asdict(choice)}

    def _peft_side(self) -> Side:
        from fewshot_rival import PeftLoop

        return Side(PeftLoop, Path(self._ground.values["backbone"]), self._alone)

    def _has_peft(self) -> bool:
        try:
            import peft  # noqa: F401
        except ImportError:
            print("peft is not installed: peft_loop is left out")
            return False
        return True

    def _scaled(self, result: Result) -> Result:
        """A result for all cells, where a part of the rates was run: the others' cells take what these took."""
        if self._repeats == 1:
            return result
        more = (self._repeats - 1) * result["tuning"]
        return {
            **result,
            "seconds": result["seconds"] + more,
            "tuning": result["tuning"] + more,
            "measured": result["seconds"],
        }

    def _best(self, name: str, changes: Values, budgets: list[int | None]) -> Values:
        """Our fastest type of numbers and budget of tokens, tried over few epochs; untried the last type, the first budget."""
        choices = [
            {"dtype": dtype, "batch_tokens": budget}
            for dtype, budget in itertools.product(DTYPES[self._device], budgets)
        ]
        if self._untried or not self._plan.trial_epochs or len(choices) == 1:
            return {"dtype": DTYPES[self._device][-1], "batch_tokens": budgets[0]}
        took: list[float] = []
        for choice in choices:
            result = self._ours({**changes, **choice, "epochs": self._plan.trial_epochs})
            took.append(result["seconds"])
            told = f"{choice['dtype']}, batch_tokens {choice['batch_tokens'] or 'by default'}"
            self._tried[name][told] = took[-1]
            print(f"{name}, {told}: {took[-1]:.2f} s", flush=True)
        return choices[int(np.argmin(took))]

    def _best_choice(self) -> Any:
        """The rival's settings by which all cells would end first, as two runs of the first cell's first steps tell."""
        from fewshot_rival import Choice

        steps = min(len(self._cells[0].order), 2 * self._plan.trial_epochs or 1)
        part = self._counted(
            [dataclasses.replace(self._cells[0], order=self._cells[0].order[:steps], evaluated=[0, steps])]
        )
        found: dict[Any, float] = {}

        def better(choices: list[Any]) -> Any:
            for choice in (one for one in choices if one not in found):
                side = self._peft_side()
                try:
                    one = side.ask("trial", choice=choice, steps=steps)
                except RuntimeError as error:  # what its user could not choose either
                    print(f"peft_loop, {choice}: {str(error).strip().splitlines()[-1]}")
                    found[choice] = float("inf")
                    continue
                finally:
                    side.close()
                # What the first run takes beyond the second is paid once (compiling).
                found[choice] = (
                    one["first"] - one["later"] + one["later"] * self._count.encoder / part.encoder
                )
                self._tried["peft_loop"][str(choice)] = {**one, "steps": steps, "expected": found[choice]}
                print(f"peft_loop, {choice}: {found[choice]:.1f} s expected", flush=True)
            return min(found, key=found.__getitem__)

        start = Choice(DTYPES[self._device][-1], "sdpa" if self._device == "cuda" else "eager")
        if self._untried:
            return start
        kinds = itertools.product(DTYPES[self._device], ("eager", "sdpa"))
        best = better(
            [dataclasses.replace(start, weights=weights, attention=other) for weights, other in kinds]
        )
        best = better([dataclasses.replace(best, micro=8)])
        if self._shape in COMPILED[self._device]:
            kinds = ("dynamic",) if self._device == "cpu" else ("dynamic", "graphs")
            best = better([dataclasses.replace(best, compiled=kind) for kind in kinds])
        return best

    def _check_equal(self, choice: Any) -> None:
        """Stop where loss or gradient of the first batch differ between ours, in float32, and the rival."""
        side = self._peft_side()
        theirs, their_grad = side.ask("first_step", choice=choice)
        side.close()
        loss, grad = self._first_step
        cosine = float((grad * their_grad).sum() / np.linalg.norm(grad) / np.linalg.norm(their_grad))
        scale = float(np.linalg.norm(grad) / np.linalg.norm(their_grad))
        told = (
            f"loss {loss:.4f} beside {theirs:.4f}, gradients' cosine {cosine:.4f}, ratio of norms {scale:.4f}"
        )
        print(f"check on the first batch: {told}", flush=True)
        if not (abs(loss / theirs - 1) < LOSS_APART and cosine > COSINE and abs(scale - 1) < NORMS_APART):
            raise SystemExit(f"the sides do not compute the same: {told}")

    def _check_same_work(self, rounds: dict[str, list[Result]]) -> None:
        """Stop where a cell's dev loss before training, or the steps at which dev was scored, differ between sides."""
        first, *others = rounds
        cells = rounds[first][0]["cells"]
        for name in others:
            for cell, found in rounds[name][0]["cells"].items():
                steps, losses = zip(*((one["step"], one["dev_loss"]) for one in found["curve"]), strict=True)
                own_steps, own = zip(
                    *((one["step"], one["dev_loss"]) for one in cells[cell]["curve"]), strict=True
                )
                if steps != own_steps or abs(losses[0] / own[0] - 1) > LOSS_APART:
                    raise SystemExit(
                        f"cell {cell}: {name} scored dev at steps {steps}, with a loss of {losses[0]:.4f} before training; "
                        f"{first} at {own_steps}, with {own[0]:.4f}"
                    )

    def _ceiling(self) -> dict[str, float]:
        """FLOP/s of the encoder's products alone: name -> rate."""
        given = products(self._ground.fields), CEILING_TOKENS[: 1 if self._untried else None]
        side = Side(Products, *given)
        found = {f"{dtype}, one process": rate for dtype, rate in side.ask("round").items()}
        side.close()
        cores = len(os.sched_getaffinity(0))
        if self._device == "cpu" and cores > 1 and not self._untried:
            sides = [Side(OneThread, *given) for _ in range(cores)]
            with ThreadPoolExecutor(cores) as pool:
                rates = list(pool.map(lambda one: one.ask("round"), sides))
            for one in sides:
                one.close()
            found |= {f"{dtype}, {cores} processes": sum(one[dtype] for one in rates) for dtype in rates[0]}
        return found


def _tuning(result: Result) -> float:
    """Seconds of all cells by their own clocks: without loading, reading and writing; of several processes, their sum."""
    return sum(cell["seconds"] for cell in result["cells"].values())


if __name__ == "__main__":
    main()
