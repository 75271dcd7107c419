"""What `bench_gpu.py` prints: the checks, the variants, and each figure that has an aim, with the aim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pretrain_variants import CHECKS

Variants = dict[str, dict[str, Any]]


class Aim(NamedTuple):
    """A figure and what it is to be.

    Attributes:
        variant: whose figure.
        figure: its name there.
        least: whether the bound is the least it may be, or what it must stay under.
        bound: of the figure.
    """

    variant: str
    figure: str
    least: bool
    bound: float


# For T5-XXL's shape on an H100 or H200. `ours_by` is our rate by the variant's, `by_ours` the other way round. An equal loss curve is one of which no
# point is further from ours than the check lets a first loss be.
AIMS = (
    Aim("ours", "ceiling_share", True, 0.6),
    Aim("ours", "peak_gb", False, 40.0),
    Aim("peft_grouped", "ours_by", True, 2.0),
    Aim("peft_grouped_compiled", "ours_by", True, 2.0),
    Aim("peft_fixed", "ours_by", True, 4.0),
    Aim("peft_fixed_compiled", "ours_by", True, 4.0),
    Aim("fp8", "by_ours", True, 1.4),
    Aim("nf4", "peak_gb", False, 16.0),
    *(Aim(name, "losses_apart", False, CHECKS[name][3]) for name in ("fp8", "int8", "nf4")),
    Aim("ours_grouped", "losses_apart", False, CHECKS["grouped"][3]),
    Aim("ours_not_compiled", "losses_apart", False, CHECKS["flex"][3]),
    Aim("ours_checkpointing", "losses_apart", False, CHECKS["checkpointing"][3]),
)
# Heading, figure, and how it is written.
COLUMNS = (
    ("tokens/s", "tokens_a_second", ",.0f"), ("ceiling", "ceiling_share", ".1%"), ("by ours", "by_ours", ".2f"),
    ("ours by", "ours_by", ".2f"), ("peak GB", "peak_gb", ".1f"), ("planned", "predicted_gb", ".1f"),
    ("losses", "losses_apart", ".2%"), ("padding", "padding", ".1%"),
)  # fmt: skip
WRITTEN = {figure: form for _, figure, form in COLUMNS}
CHECKED = (("loss", ".4f"), ("apart", ".5f"), ("cosine", ".5f"), ("norms", ".4f"))


def why(found: dict[str, Any]) -> str | None:
    """Why a variant or a check is not there, or not all of it."""
    said = found.get("failed") or found.get("skipped")
    return None if said is None else str(said)


def unproven(found: Variants, checks: Sequence[str]) -> list[str]:
    """The checks that were to be made and failed, or have no verdict."""
    return [name for name in checks if not found["check"].get(name, {}).get("ok")]


def judged(found: Variants) -> list[dict[str, Any]]:
    """Every aim whose figure was measured, and whether it is met."""
    rows = []
    for variant, figure, least, bound in AIMS:
        value = found.get(variant, {}).get(figure)
        if value is not None:
            met = value >= bound if least else value < bound
            rows.append(
                {
                    "variant": variant,
                    "figure": figure,
                    "found": value,
                    "bound": bound,
                    "least": least,
                    "met": met,
                }
            )
    return rows


def table(found: Variants, checks: Sequence[str]) -> None:
    """Print all of it."""
    if "check" in found:
        print(f"\n{'check':<24}" + "".join(f"{name:>9}" for name, _ in CHECKED))
        for name in checks:
            one = found["check"].get(name, {})
            if "loss" in one:
                cells = "".join(f"{one[key]:>9{form}}" for key, form in CHECKED)
                print(f"{name:<24}{cells}{'' if one['ok'] else '  WRONG'}")
            else:
                print(f"{name:<24}  NO VERDICT: {why(one) or why(found['check']) or 'not reached'}")
    print(f"\n{'variant':<24}" + "".join(f"{heading:>10}" for heading, _, _ in COLUMNS) + "  at")
    for name, one in found.items():
        if name == "ceiling" and "bfloat16" in one:
            rates = (f"{dtype} {one[dtype] / 1e12:,.1f} TFLOP/s" for dtype in ("bfloat16", "float32"))
            print(f"{name:<24}  " + ", ".join(rates))
        elif "tokens_a_second" in one:
            cells = (_cell(one.get(figure), form) for _, figure, form in COLUMNS)
            size = one.get("batch_tokens") or one.get("micro")
            print(f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells) + f"  {size}  {why(one) or ''}")
        elif name != "check":
            print(f"{name:<24}  {why(one)}")
    print(f"\n{'figure':<36}{'found':>10}{'aim':>18}  met")
    for row in judged(found):
        form = WRITTEN[row["figure"]]
        aim = f"{'at least' if row['least'] else 'under'} {row['bound']:{form}}"
        name = f"{row['variant']} {row['figure']}"
        print(f"{name:<36}{row['found']:>10{form}}{aim:>18}  {'yes' if row['met'] else 'NO'}")


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
