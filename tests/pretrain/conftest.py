"""Settings of a short pre-training run on the small build, and records that a backbone learns from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain.settings import PretrainSettings


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


@pytest.fixture
def cloze_file(tmp_path: Path) -> Path:
    """Three cloze records: with options, with a word, with two texts."""
    records: list[dict[str, Any]] = [
        {
            "pattern": "{q} ? {options} ? The correct one is <X>",
            "fields": {"q": "the boat"},
            "options": ["a mill", "a bee"],
            "target": "B",
        },
        {"pattern": "{s} <X>", "fields": {"s": "Anna found the oven."}, "target": "great"},
        {
            "pattern": "{a} <X> {b}",
            "fields": {"a": "the fish", "b": "the bridge"},
            "options": [],
            "target": "yes",
        },
    ]
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path
