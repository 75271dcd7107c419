"""`make bench-gpu`: prompt pre-training on one GPU, every variant beside Trainer with PEFT, in one table.

It needs nothing but the machine: random weights of the shape are made on the device, examples are drawn with the lengths of
real pairs. First every way of computing is checked against the plain model in float32 on a small shape; then each variant
runs in a process of its own, the most important first, until the minutes are over. `runs/bench/gpu.json` is written
after each. A variant whose package is missing is left out, and the table says so.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs where nothing is installed

from common_bench import write
from pretrain_data import SHAPES, encoder_weights
from pretrain_variants import Plan, ceiling, check, ours, peft

# In order of importance: what is called, and with what.
VARIANTS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
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
    parser.add_argument("--minutes", type=float, default=10.0, help="no variant starts or goes on later")
    parser.add_argument("--only", help="variants, with commas between")
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
        plan = Plan("tiny-gated", "cpu", 8, (1024, 2048), (4, 8), 0.0, curve=2)
        checked = plan
    else:
        numbers = [tuple(int(one) for one in text.split(",")) for text in (given.budgets, given.micro)]
        plan = Plan(given.shape, "cuda", given.batch_size, *numbers, given.seconds)
        checked = dataclasses.replace(plan, shape="t5-1.1-small")
    chosen = given.only.split(",") if given.only else list(VARIANTS)
    ends = time.monotonic() + 60 * given.minutes
    found: dict[str, dict[str, Any]] = {}
    for name in chosen:
        left = ends - time.monotonic()
        if left < LEAST:
            found[name] = {"skipped": "no time left"}
        else:
            found[name] = _run(name, checked if name == "check" else plan, left)
        say = found[name].get("skipped") or found[name].get("failed") or "done"
        print(f"{name}: {say} ({ends - time.monotonic():.0f} s left)", flush=True)
        path = write("gpu", {**dataclasses.asdict(plan), "minutes": given.minutes}, *_figures(plan, found))
    _table(found)
    print(f"written to {path}")
    wrong = [key for key, one in _checks(found).items() if one.get("ok") is False]
    if wrong or "failed" in found.get("check", {}):
        raise SystemExit(f"the check failed: {', '.join(wrong) or found['check']['failed']}")


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
            try:
                subprocess.run(command, stdout=file, stderr=file, timeout=left, check=False)
            except subprocess.TimeoutExpired:
                return {"failed": f"stopped after {left:.0f} s"}
        lines = log.read_text(errors="replace").strip().splitlines()
        if not result.exists():
            return {"failed": lines[-1] if lines else "died without a word", "log": lines[-30:]}
        return {**json.loads(result.read_text()), "wall_seconds": time.monotonic() - began}


def _child(name: str, plan: str, result: str) -> None:
    """Measure one variant and write what was found."""
    from corpora.common.errors import UserError

    work, arguments = VARIANTS[name]
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(plan).items()
    }
    try:
        found = work(Plan(**fields), **arguments)
    except (ImportError, UserError) as error:
        found = {"skipped": str(error)}
    Path(result).write_text(json.dumps(found))


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
    return ratios, found, {"ceiling_share": shares}


def _checks(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in found.get("check", {}).items() if isinstance(one, dict)}


def _table(found: dict[str, dict[str, Any]]) -> None:
    print(f"\n{'check':<24}{'loss':>9}{'apart':>10}{'cosine':>9}{'norms':>8}")
    for name, one in _checks(found).items():
        if "ok" in one:
            verdict = "" if one["ok"] else "  WRONG"
            print(
                f"{name:<24}{one['loss']:>9.4f}{one['apart']:>10.5f}{one['cosine']:>9.5f}{one['norms']:>8.4f}{verdict}"
            )
        else:
            print(f"{name:<24}{one.get('skipped') or format(one['loss'], '9.4f')}")
    print(f"\n{'variant':<24}{'tokens/s':>10}{'ceiling':>9}{'peak GB':>9}{'planned':>9}{'losses':>9}  at")
    for name, one in found.items():
        if "tokens_a_second" in one:
            share = f"{one['ceiling_share']:.1%}" if "ceiling_share" in one else "-"
            apart = f"{one['losses_apart']:.2%}" if "losses_apart" in one else "-"
            size = one.get("batch_tokens") or one.get("micro")
            print(
                f"{name:<24}{one['tokens_a_second']:>10,.0f}{share:>9}{_gigabytes(one['peak_gb'])}"
                f"{_gigabytes(one.get('predicted_gb'))}"
                f"{apart:>9}  {size}"
            )
        elif name == "ceiling" and "bfloat16" in one:
            print(
                f"{name:<24}"
                + ", ".join(f"{dtype} {one[dtype] / 1e12:,.1f} TFLOP/s" for dtype in ("bfloat16", "float32"))
            )
        elif name != "check":
            print(f"{name:<24}{one.get('skipped') or one.get('failed')}")


def _gigabytes(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.1f'):>9}"


if __name__ == "__main__":
    main()
