"""Weights that a backbone starts from, and what its run leaves on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from corpora.common.errors import UserError
from pretrain.backbone_settings import BackboneTrainSettings
from pretrain.backbone_training import train_backbone


def further(out: Path, init: Path) -> BackboneTrainSettings:
    """A run that writes given weights as they are."""
    return BackboneTrainSettings.model_validate(
        {"out": str(out), "init": str(init), "steps": 0, "device": "cpu"}
    )


@pytest.fixture
def weights(tmp_path: Path, backbone_dir: Path) -> Path:
    """A copy of the small backbone, to be spoilt."""
    return Path(shutil.copytree(backbone_dir, tmp_path / "weights"))


def refusal(out: Path, init: Path) -> str:
    with pytest.raises(UserError) as caught:
        train_backbone(further(out, init))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_are_missing_are_never_made_up(tmp_path: Path, weights: Path) -> None:
    tensors = load_file(weights / "model.safetensors")
    gone = "encoder.block.0.layer.0.SelfAttention.q.weight"
    del tensors[gone]
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks 1 weights, {gone} first" in refusal(tmp_path / "run", weights)


def test_a_folder_without_weights_is_refused_in_one_line(tmp_path: Path, weights: Path) -> None:
    (weights / "model.safetensors").unlink()
    assert refusal(tmp_path / "run", weights).startswith(
        f"cannot load the weights of the backbone {weights} ("
    )


def test_spoilt_weights_are_refused_in_one_line(tmp_path: Path, weights: Path) -> None:
    file = weights / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert refusal(tmp_path / "run", weights).startswith(
        f"cannot load the weights of the backbone {weights} ("
    )


@pytest.mark.parametrize("kind", ["sharded", "bin"])
def test_other_weights_in_the_same_folder_are_seen_however_they_are_stored(
    tmp_path: Path, weights: Path, kind: str
) -> None:
    model = T5ForConditionalGeneration.from_pretrained(weights)

    def write() -> None:
        (weights / "model.safetensors").unlink(missing_ok=True)
        if kind == "sharded":
            model.save_pretrained(weights, max_shard_size="20KB")
            assert (weights / "model.safetensors.index.json").exists()
        else:
            torch.save(model.state_dict(), weights / "pytorch_model.bin")

    write()
    train_backbone(further(tmp_path / "run", weights))
    with torch.no_grad():
        model.shared.weight.add_(1)
    write()
    assert "other settings or data" in refusal(tmp_path / "run", weights)
