"""`make bench-gpu`: prompt pre-training on one GPU, every variant beside Trainer with PEFT, in one table.

It needs nothing but the machine: random weights of the shape are made on the device, examples are drawn with the lengths of
real pairs. First every way of computing is checked against the plain model in float32 on a small shape; then each variant
runs in a process of its own, the most important first, until the minutes are over. `runs/bench/gpu.json` is written
after each, and a variant that is stopped or fails leaves what it had measured by then. A variant whose package is
missing is left out, and the table says so. It ends with exit code 1 where a check that was to be made failed, or has no
verdict, for whatever reason.

`--dry-run` does all of it on a CPU with a tiny shape. Where there is no GPU, that is what `make bench-gpu` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs where nothing is installed

from common_bench import write
from gpu_table import judged, table, unproven, why
from pretrain_data import SHAPES, encoder_weights
from pretrain_variants import DRY_CHECKS, Found, Plan, ceiling, check, ours, peft, told

# In order of importance: what is called, and with what.
VARIANTS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "check": (check, {}),
    "ceiling": (ceiling, {}),
    "ours": (ours, {}),
    "peft_grouped": (peft, {"fixed": False}),
    "fp8": (ours, {"weights": "fp8"}),
    "nf4": (ours, {"weights": "nf4"}),
    "peft_fixed": (peft, {"fixed": True}),
    "int8": (ours, {"weights": "int8"}),
    "ours_grouped": (ours, {"attention": "grouped"}),
    "ours_not_compiled": (ours, {"compiled": False}),
    "ours_checkpointing": (ours, {"checkpointing": True}),
    "peft_grouped_compiled": (peft, {"fixed": False, "compiled": True}),
    "peft_fixed_compiled": (peft, {"fixed": True, "compiled": True}),
}
LEAST = 20  # seconds that a variant is started with


def main() -> None:
    """Run the benchmark."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="t5-xxl", choices=sorted(SHAPES))
    parser.add_argument("--minutes", type=float, default=9.0, help="no variant starts or goes on later")
    parser.add_argument("--only", help="variants, with commas between")
    parser.add_argument("--checks", help="ways of computing to check, with commas between; on a CPU, a few")
    parser.add_argument("--batch-size", type=int, default=256, help="examples of an optimiser step")
    parser.add_argument(
        "--budgets", default="8192,16384,32768,65536", help="encoder tokens of our micro-batches"
    )
    parser.add_argument("--micro", default="8,16,32,64,128", help="examples of the rival's micro-batches")
    parser.add_argument("--seconds", type=float, default=8.0, help="that a variant is measured for")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _child(*given.child)
        return
    if not torch.cuda.is_available() and not given.dry_run:
        print("no GPU here: a dry run")
        given.dry_run = True
    if given.dry_run:
        plan = Plan("tiny-gated", "cpu", 8, (1024, 2048), (4, 8), 0.0, DRY_CHECKS, curve=2)
        checked = plan
    else:
        numbers = [tuple(int(one) for one in text.split(",")) for text in (given.budgets, given.micro)]
        plan = Plan(given.shape, "cuda", given.batch_size, *numbers, given.seconds)
        checked = dataclasses.replace(plan, shape="t5-1.1-small")
    if given.checks:
        checked = dataclasses.replace(checked, checks=tuple(given.checks.split(",")))
    chosen = given.only.split(",") if given.only else list(VARIANTS)
    ends = time.monotonic() + 60 * given.minutes
    found: dict[str, dict[str, Any]] = {}
    for name in chosen:
        left = ends - time.monotonic()
        if left < LEAST:
            found[name] = {"skipped": "no time left"}
        else:
            found[name] = _run(name, checked if name == "check" else plan, left)
        print(f"{name}: {why(found[name]) or 'done'} ({ends - time.monotonic():.0f} s left)", flush=True)
        path = write("gpu", {**dataclasses.asdict(plan), "minutes": given.minutes}, *_figures(plan, found))
    table(found, checked.checks)
    print(f"written to {path}")
    wrong = unproven(found, checked.checks) if "check" in found else []
    if wrong:
        raise SystemExit(f"failed or without a verdict: {', '.join(wrong)}")


def _run(name: str, plan: Plan, left: float) -> dict[str, Any]:
    """Run a variant in a process of its own: one that takes all memory spoils no other."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [
            sys.executable,
            __file__,
            "--child",
            name,
            json.dumps(dataclasses.asdict(plan)),
            str(result),
        ]
        with log.open("w") as file:
            began = time.monotonic()
            stopped = {}
            try:
                subprocess.run(command, stdout=file, stderr=file, timeout=left, check=False)
            except subprocess.TimeoutExpired:
                stopped = {"failed": f"stopped after {left:.0f} s"}
        lines = log.read_text(errors="replace").strip().splitlines()
        found = json.loads(result.read_text()) if result.exists() else {}
        if not stopped and not found.pop("ended", False):
            stopped = {"failed": lines[-1] if lines else "died without a word"}
        if stopped or "failed" in found:
            stopped["log"] = lines[-30:]
        return {**found, **stopped, "wall_seconds": time.monotonic() - began}


def _child(name: str, plan: str, result: str) -> None:
    """Measure one variant and write what was found."""
    from corpora.common.errors import UserError

    work, arguments = VARIANTS[name]
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(plan).items()
    }
    found = Found(Path(result))
    try:
        work(Plan(**fields), found, **arguments)
    except (ImportError, UserError) as error:
        found["skipped"] = str(error)
    except Exception as error:
        traceback.print_exc()
        found["failed"] = told(error)
    found.save(ended=True)


def _figures(
    plan: Plan, found: dict[str, dict[str, Any]]
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
    """Ratios, raw figures, and shares of the ceiling; each variant's own share and distance of losses are put to it."""
    rates = {name: one["tokens_a_second"] for name, one in found.items() if "tokens_a_second" in one}
    top = found.get("ceiling", {}).get("bfloat16")
    losses = found.get("ours", {}).get("losses")
    for name, rate in rates.items():
        if top:
            found[name]["ceiling_share"] = 4 * encoder_weights(SHAPES[plan.shape]) * rate / top
        if losses and "losses" in found[name]:
            pairs = zip(found[name]["losses"], losses, strict=True)
            found[name]["losses_apart"] = max(abs(a / b - 1) for a, b in pairs)
    ratios: dict[str, float] = {}
    if "ours" in rates:
        for name, rate in rates.items():
            rival = name.startswith("peft")
            found[name]["ours_by" if rival else "by_ours"] = (
                rates["ours"] / rate if rival else rate / rates["ours"]
            )
        for rival in ("peft_grouped", "peft_fixed"):
            theirs = [rates[name] for name in (rival, f"{rival}_compiled") if name in rates]
            if theirs:
                ratios[f"{plan.shape}/{rival}"] = rates["ours"] / max(theirs)
        ratios |= {
            f"{plan.shape}/{name}_by_ours": rates[name] / rates["ours"]
            for name in ("fp8", "nf4", "int8")
            if name in rates
        }
    shares = {plan.shape: found["ours"]["ceiling_share"]} if "ceiling_share" in found.get("ours", {}) else {}
    return ratios, found, {"ceiling_share": shares, "aims": judged(found)}


if __name__ == "__main__":
    main()
