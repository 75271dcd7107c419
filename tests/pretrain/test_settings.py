"""Settings of a pre-training run: what is refused before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from corpora.common.errors import UserError
from corpora.common.settings import load_settings, make_settings
from pretrain.settings import (
    FREE_KEYS,
    PretrainSettings,
    check_inputs,
    learning_rate_scale,
    read_deepspeed_config,
)

REQUIRED = {"out": "run", "corpora": "build", "backbone": "model"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"learning_rate": 0}, "learning rate of zero trains nothing"),
        ({"learning_rate": -0.1}, "greater than 0"),
        ({"learnig_rate": 0.1}, 'did you mean "learning_rate"'),
        ({"formats": []}, "at least one of sentence_pair"),
        ({"formats": ["unified", "unified"]}, "each format once"),
        ({"formats": ["nli"]}, '"formats.0" is'),
        ({"batch_tokens": 100}, "not one example would fit"),
        ({"export_step": 11, "steps": 10}, "would never come"),
        ({"export_step": 5, "patience": 3}, "expected one of them"),
        ({"zero_stage": 4}, '"zero_stage" is 4'),
    ],
)
def test_impossible_settings_are_refused_with_their_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        make_settings(PretrainSettings, {**REQUIRED, **change}, "pretrain.yaml")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("out: x\ncorpora: y\n")
    with pytest.raises(UserError, match=r'c\.yaml: key "backbone" is missing'):
        load_settings(PretrainSettings, tmp_path / "c.yaml")


def test_the_rate_falls_with_the_square_root_of_the_update() -> None:
    settings = make_settings(PretrainSettings, REQUIRED, "test")
    assert [learning_rate_scale(settings, step) for step in (0, 3, 99)] == pytest.approx([1.0, 0.5, 0.1])


def test_missing_corpora_and_formats_are_named(tmp_path: Path) -> None:
    settings = make_settings(PretrainSettings, {**REQUIRED, "corpora": str(tmp_path / "none")}, "test")
    with pytest.raises(UserError, match="does not exist"):
        check_inputs(settings)
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "manifest.json").write_text("{}")
    settings = make_settings(
        PretrainSettings, {**REQUIRED, "corpora": str(tmp_path), "formats": ["single_text"]}, "test"
    )
    with pytest.raises(UserError, match="holds no single_text corpus; it holds unified"):
        check_inputs(settings)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_zero_presets_leave_clipping_casting_and_updates_to_us(stage: int) -> None:
    from launch.launcher import zero_config_path

    config = read_deepspeed_config(zero_config_path(stage))
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "gradient_clipping"),
        ({"gradient_clipping": 1.0}, "gradient_clipping"),
        ({"gradient_clipping": 0.0, "bf16": {"enabled": True}}, "dtype"),
        ({"gradient_clipping": 0.0, "optimizer": {"type": "AdamW"}}, "optimizer"),
    ],
)
def test_a_deepspeed_file_that_would_clip_cast_or_update_is_refused(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=reason):
        read_deepspeed_config(tmp_path / "ds.json")


def test_the_page_on_pre_training_lists_every_setting_and_marks_those_that_may_change() -> None:
    page = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text(encoding="utf-8")
    table = page.split("## Settings")[1].split("## ")[0]
    keys = "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    named = dict(re.findall(r"`(\w+)`(\\\*)?", keys))
    assert set(PretrainSettings.model_fields) == set(named)
    assert {key for key, mark in named.items() if mark} == FREE_KEYS
