"""Chooses the demo's learning rates on draws of the world that the demo never sees: `python -m launch.pocket.choose_rates OUT`.

Another seed and another side of the world (no sentence in common with the demo's sets), dev scores only, averaged over tasks
and seeds. Its outcome stands in the comments of demo.yaml.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from corpora.common.progress import say
from corpora.common.settings import read_yaml
from launch.pocket.demo import (
    BACKBONE,
    CONFIG,
    METHODS,
    build_corpora,
    fewshot_values,
    pretrain_prompts,
    tune_fewshot,
    write_world,
)
from launch.pocket.tasks import DEMO_TASKS

SEED = 77
RATES = (0.3, 1.0)
FT_RATES = (3e-4, 1e-3)
SEEDS = (100, 101)


def choose(out: Path) -> dict[str, dict[float, tuple[float, float]]]:
    """Mean dev score and dev loss of each method and rate; the best score (then loss) of each is what demo.yaml should say."""
    from finetune.results import Results

    config = read_yaml(CONFIG)
    write_world(out / "world", {**config["world"], "seed": SEED}, DEMO_TASKS, side="trial")
    build_corpora(out, BACKBONE)
    pretrain_prompts(out, config["pretrain"], BACKBONE)
    values = fewshot_values(out, config["fewshot"], DEMO_TASKS) | {
        "methods": METHODS,
        "seeds": SEEDS,
        "learning_rates": RATES,
        "learning_rates_of": {},
        "ft_learning_rates": FT_RATES,
        "max_test": 50,  # test scores are not looked at
    }
    tune_fewshot(values)
    rows = Results(out / "fewshot").rows.values()
    means: dict[str, dict[float, tuple[float, float]]] = defaultdict(dict)
    for method in METHODS:
        for rate in FT_RATES if method == "ft" else RATES:
            found = [row for row in rows if (row["method"], row["learning_rate"]) == (method, rate)]
            means[method][rate] = (mean(row["dev"] for row in found), mean(row["dev_loss"] for row in found))
    for method, rates in means.items():
        best = min(rates, key=lambda rate: (-rates[rate][0], rates[rate][1]))
        found_here = "  ".join(
            f"{rate:g}: {dev:.3f} (loss {loss:.3f})" for rate, (dev, loss) in rates.items()
        )
        say(f"{method}: {best:g}   {found_here}")
    return means


if __name__ == "__main__":
    choose(Path(sys.argv[1]))
