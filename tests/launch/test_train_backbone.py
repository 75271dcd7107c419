"""Two processes under the real DeepSpeed launcher train what one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from corpora.common.settings import load_settings
from pretrain.backbone_settings import BackboneTrainSettings
from pretrain.backbone_training import train_backbone

ROOT = Path(__file__).resolve().parents[2]


def train(folder: Path, processes: int, tokenizer_dir: Path, text_file: Path) -> dict[str, torch.Tensor]:
    out = folder / f"run{processes}"
    settings = {
        "out": str(out),
        "tokenizer": str(tokenizer_dir),
        "shape": {
            "d_model": 32,
            "d_ff": 64,
            "d_kv": 8,
            "num_heads": 4,
            "num_layers": 1,
            "num_decoder_layers": 1,
        },
        "text": [str(text_file)],
        "mixture": {"span": 0.7, "prefix": 0.3},
        # Plain decay of small steps: Muon's bfloat16 iteration would turn rounding into differences that can be seen.
        "optimizer": "adamw",
        "learning_rate": 0.001,
        "steps": 4,
        "batch_tokens": 300,
        "max_tokens": 48,
        "device": "cpu",
        "eval_examples": 0,
        "processes": processes,
    }
    path = folder / f"config{processes}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    if processes == 1:
        train_backbone(load_settings(BackboneTrainSettings, path))
        return load_file(out / "model.safetensors")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from launch.cli import main; main()", "backbone", "train", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return load_file(out / "model.safetensors")


def test_two_processes_train_what_one_trains(tmp_path: Path, tokenizer_dir: Path, text_file: Path) -> None:
    one, two = (train(tmp_path, count, tokenizer_dir, text_file) for count in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
