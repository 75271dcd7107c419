"""A small build of all four formats, and settings of a short run on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpora.common.rng import generator
from pretrain.settings import PretrainSettings

FIVE = {
    "terrible": ["awful", "worst", "broken"],
    "bad": ["poor", "weak", "dull"],
    "maybe": ["plain", "usual", "fair"],
    "good": ["nice", "pleasant", "useful"],
    "great": ["superb", "perfect", "wonderful"],
}


@pytest.fixture(scope="session")
def build_dir(
    tmp_path_factory: pytest.TempPathFactory,
    text_file: Path,
    tokenizer_dir: Path,
    pocket_docs: list[list[str]],
) -> Path:
    """Task corpora of all four formats, as `ppt corpora build` makes them; the labeller learnt from made reviews."""
    from corpora.build import BuildSettings, build
    from corpora.labeller import train

    folder = tmp_path_factory.mktemp("build")
    rng = generator(0, "made reviews")
    reviews = []
    for number in range(300):
        word = list(FIVE)[number % 5]
        sentence = pocket_docs[number % len(pocket_docs)][0]
        reviews.append({"text": f"{sentence} It was {rng.choice(FIVE[word])}.", "label": word})
    (folder / "reviews.jsonl").write_text(
        "\n".join(json.dumps(row) for row in reviews) + "\n", encoding="utf-8"
    )
    train(folder / "reviews.jsonl", folder / "labeller", language="en")
    build(
        BuildSettings(
            text=[str(text_file)],
            tokenizer=str(tokenizer_dir),
            out=str(folder / "corpora"),
            labeller=str(folder / "labeller"),
            language="en",
        )
    )
    return folder / "corpora"


@pytest.fixture
def settings(tmp_path: Path, build_dir: Path, backbone_dir: Path) -> Callable[..., PretrainSettings]:
    """Makes the settings of a run of seconds; arguments override."""

    def make(**changes: Any) -> PretrainSettings:
        values: dict[str, Any] = {
            "out": str(tmp_path / "run"), "corpora": str(build_dir), "backbone": str(backbone_dir),
            "prompt_len": 4, "steps": 6, "batch_size": 4, "batch_tokens": 2000, "eval_every": 3, "save_every": 2,
            "log_every": 2, "eval_examples": 10, "device": "cpu", "learning_rate": 0.5,
        }  # fmt: skip
        return PretrainSettings(**{**values, **changes})

    return make
