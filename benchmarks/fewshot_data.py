"""What the few-shot bench runs on: a backbone, a labelled set, the settings of the job and the operations that it takes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from corpora.common.rng import generator
from pretrain_data import SHAPES, attention_flops, encoder_weights, paragraph, sentences

POCKET = Path(__file__).parents[1] / "launch" / "pocket"
POCKET_TASK, POCKET_SEED, POCKET_PROMPT = (
    "link",
    2025,
    16,
)  # one of `ppt demo`'s sets, with its seed and length
SEEDS, RATES = (0, 1, 2, 3, 4), (0.03, 0.1, 0.3, 1.0)  # the protocol's: 20 cells
EVERY = 6  # optimiser steps between dev scores, the protocol's
PROMPT_LEN = 100  # the protocol's

# Words of SST-2's sentences (Socher et al. 2013; 5,000 of its training rows): the logarithm is near normal.
MEDIAN_WORDS, SPREAD, LONGEST = 17, 0.57, 52
ROWS = 400  # generated for training; a quarter of it for the test set


SIDES = ("default", "together", "processes", "one_by_one", "peft_loop")
LARGE = ("together", "one_by_one", "peft_loop")  # where each takes minutes


@dataclass(frozen=True)
class Plan:
    """How a shape is measured.

    Attributes:
        prompt_len: tokens of a prompt.
        epochs: over the 32 training examples, two optimiser steps each.
        rounds: of all sides in turn.
        rates_alone: learning rates that sides which go one cell at a time run; a cell's products depend on its seed's
            examples alone, so the other rates' cells are counted with the seconds of these.
        trial_epochs: of the trials of settings.
        seeds, rates: of the grid.
        sides: what is measured.
    """

    prompt_len: int = PROMPT_LEN
    epochs: int = 5
    rounds: int = 1
    rates_alone: int = 1
    trial_epochs: int = 0
    seeds: tuple[int, ...] = SEEDS
    rates: tuple[float, ...] = RATES
    sides: tuple[str, ...] = SIDES


PLANS = {
    "tiny": Plan(4, 2, 1, 1, 0, SEEDS[:2], RATES[:2]),
    "pocket": Plan(POCKET_PROMPT, 10, 3, len(RATES), 2),
    "t5-base": Plan(sides=LARGE),
    "t5-large": Plan(epochs=10, rounds=2, rates_alone=len(RATES), trial_epochs=1),
    "t5-xxl": Plan(sides=LARGE),
}


@dataclass(frozen=True)
class Ground:
    """What every side of a shape runs on.

    Attributes:
        fields: the backbone's configuration.
        values: settings of `ppt fewshot`, less what is tried.
        origin: where the text is from.
    """

    fields: dict[str, Any]
    values: dict[str, Any]
    origin: str


def prepare(folder: Path, shape: str, plan: Plan, task: str) -> Ground:
    """Write the backbone and the labelled set of a shape.

    Args:
        folder: for both.
        shape: `pocket`, whose backbone and tasks are the project's, or a name in `SHAPES`, with random weights.
        plan: of the shape.
        task: a set of `PPT_DATA`, taken for random backbones where that is set.
    """
    data = os.environ.get("PPT_DATA")
    if shape == "pocket":
        from launch.pocket.tasks import write_tasks

        write_tasks(folder / "data", (POCKET_TASK,), POCKET_SEED, "test", 600, 40)
        backbone = POCKET / "backbone"
        values = {"tasks": [str(POCKET / "tasks" / f"{POCKET_TASK}.yaml")], "data": str(folder / "data")}
        origin = f"launch/pocket/tasks/{POCKET_TASK}.yaml"
    else:
        backbone = folder / "backbone"
        if data:
            values, origin = {"tasks": [task], "data": f"{data}/en"}, f"PPT_DATA/en/{task}"
            tokenizer = Path(data) / "tokenizers" / "t5_spiece.model"
        else:
            print("PPT_DATA is unset: texts as long as SST-2's are put together from the embedded world")
            values, origin = {"tasks": [str(_write_sentences(folder))]}, "generated"
            tokenizer = POCKET / "backbone"
        _save_random(backbone, SHAPES[shape], tokenizer)
    values |= {
        "backbone": str(backbone), "methods": ["vanilla_pt"], "prompt_len": plan.prompt_len, "epochs": plan.epochs,
        "eval_every": EVERY, "seeds": list(plan.seeds), "learning_rates": list(plan.rates), "max_test": 1,
        "keep_prompts": False,
    }  # fmt: skip
    return Ground(json.loads((backbone / "config.json").read_text()), values, origin)


def _write_sentences(folder: Path) -> Path:
    """A set of two labels without meaning; the path of its task file."""
    rng, whole = generator(0, "bench fewshot"), sentences()
    words = np.exp(rng.normal(np.log(MEDIAN_WORDS), SPREAD, ROWS + ROWS // 4)).clip(2, LONGEST)
    lines = [
        json.dumps({"text": paragraph(whole, int(count)), "label": ("bad", "good")[number % 2]}) + "\n"
        for number, count in enumerate(words)
    ]
    (folder / "generated").mkdir(parents=True)
    (folder / "generated" / "train.jsonl").write_text("".join(lines[:ROWS]))
    (folder / "generated" / "test.jsonl").write_text("".join(lines[ROWS:]))
    path = folder / "generated.yaml"
    fields = {"format": "single_text", "verbalizer": ["bad", "good"], "pattern": "{text} <X>"}
    path.write_text(yaml.safe_dump(fields))
    return path


def _save_random(folder: Path, shape: dict[str, Any], tokenizer: Path) -> None:
    """Random weights in bfloat16, drawn where they are drawn fastest, and a tokenizer."""
    import torch

    from corpora.tokenizer import Tokenizer
    from pretrain.backbone_files import save_model
    from pretrain_random import random_model

    folder.mkdir(parents=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    save_model(random_model(shape, device, torch.bfloat16), folder, "bfloat16")
    Tokenizer.load(tokenizer).save(folder)


@dataclass(frozen=True)
class Count:
    """Examples, tokens and floating-point operations of all cells of a grid, or of one.

    The encoder's own products are 2 x its weights x tokens forward, and as many back to its input where a prompt learns: 4 x
    weights x tokens of a training example, 2 x of a dev example, as nothing else learns. `attention` are the products of
    scores and mixtures, `decoder` those of the two positions that the decoder reads, the head's included.
    """

    train_examples: int
    dev_examples: int
    train_tokens: int
    dev_tokens: int
    encoder: float
    attention: float
    decoder: float

    @property
    def flops(self) -> float:
        """All of them."""
        return self.encoder + self.attention + self.decoder


def count(fields: dict[str, Any], train_lengths: np.ndarray, dev_lengths: np.ndarray) -> Count:
    """Count what tuning takes.

    Args:
        fields: the backbone's configuration.
        train_lengths: encoder tokens, prompt included, of every example of every optimiser step.
        dev_lengths: the same of every example of every dev score.
    """
    d, inner = fields["d_model"], fields["d_kv"] * fields["num_heads"]
    gates = 2 if "gated" in fields["feed_forward_proj"] else 1
    layers = fields.get("num_decoder_layers") or fields["num_layers"]
    # Self-attention's four products, cross-attention's two of queries and outputs, feed-forward; two positions.
    position = layers * (6 * d * inner + (gates + 1) * d * fields["d_ff"])
    example = 2 * 2 * position + 2 * d * fields["vocab_size"]  # the head at the label alone
    weights = encoder_weights(fields)
    return Count(
        len(train_lengths), len(dev_lengths), int(train_lengths.sum()), int(dev_lengths.sum()),
        encoder=2.0 * weights * (2 * float(train_lengths.sum()) + float(dev_lengths.sum())),
        # Forward is a third of forward and backward.
        attention=attention_flops(fields, train_lengths) + attention_flops(fields, dev_lengths) / 3,
        decoder=float(example) * (2 * len(train_lengths) + len(dev_lengths)),
    )  # fmt: skip
