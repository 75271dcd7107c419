"""Shapes of backbones, by folder, by name, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.common.errors import UserError
from pretrain.shapes import find_shape, shape_of_config


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        # As the papers and the hub state them.
        ("google/t5-v1_1-small", 0.077), ("google/t5-v1_1-base", 0.248), ("google/t5-v1_1-large", 0.783),
        ("google/t5-v1_1-xl", 2.85), ("google/t5-v1_1-xxl", 11.1), ("google/mt5-small", 0.300), ("google/mt5-xl", 3.74),
        ("google/mt5-xxl", 12.9), ("google-t5/t5-small", 0.0605), ("google-t5/t5-base", 0.223), ("google-t5/t5-3b", 2.85),
        ("google-t5/t5-11b", 11.3),
    ],
)  # fmt: skip
def test_published_shapes_have_the_published_number_of_weights(name: str, billions: float) -> None:
    assert find_shape(name).weights / 1e9 == pytest.approx(billions, rel=0.01)


def test_a_folder_needs_its_config_alone(backbone_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((backbone_dir / "config.json").read_text())
    shape = find_shape(str(tmp_path))
    assert (shape.d_model, shape.num_heads, shape.gated) == (32, 4, True)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "google/t5-v1_1-xxl"'):
        find_shape("google/t5-v11-xxl")


def test_another_family_and_a_missing_number_are_refused() -> None:
    with pytest.raises(UserError, match='is a "bert"; supported: t5, mt5'):
        shape_of_config({"model_type": "bert"}, "x")
    with pytest.raises(UserError, match='x: key "d_kv" is missing'):
        shape_of_config(
            {"model_type": "t5", "d_model": 8, "num_heads": 2, "d_ff": 8, "num_layers": 1, "vocab_size": 9},
            "x",
        )
