"""Jobs on a disk that takes no more than a few kilobytes a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SHAPE = {"d_model": 64, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 1, "num_decoder_layers": 1}


def refused(command: list[str], kibibytes: int, out: Path) -> str:
    """Run a command that may write no more than that into any file; give the one line it ends with."""
    limited = ["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "bash", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        limited, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    found = [line for line in done.stderr.splitlines() if line.startswith("ppt: ")]
    assert len(found) == 1, done.stderr
    assert found[0].startswith(f"ppt: cannot write {out}") and "file too large" in found[0]
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    kept = {name for name in files if not name.startswith("tensorboard/")}
    assert kept <= {".lock", "config.yaml", "metrics.jsonl"}
    return found[0]


def test_training_a_backbone_on_a_full_disk_is_one_line_and_nothing_half_written(
    tmp_path: Path, tokenizer_dir: Path, text_file: Path
) -> None:
    config = {
        "tokenizer": str(tokenizer_dir), "shape": SHAPE, "text": [str(text_file)], "device": "cpu",
        "mixture": {"span": 1.0}, "steps": 2, "batch_tokens": 256, "max_tokens": 48, "eval_examples": 0,
    }  # fmt: skip
    path = tmp_path / "backbone.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-c", "from launch.cli import main; main()", "backbone", "train", str(path)]
    checkpoint, final = tmp_path / "checkpoint", tmp_path / "final"
    assert "/checkpoints/" in refused([*command, f"out={checkpoint}", "save_every=1"], 40, checkpoint)
    refused([*command, f"out={final}", "save_every=100"], 40, final)


def test_pre_training_on_a_full_disk_is_one_line_and_nothing_half_written(
    tmp_path: Path, build_dir: Path, backbone_dir: Path
) -> None:
    out = tmp_path / "run"
    config = {
        "out": str(out), "corpora": str(build_dir), "backbone": str(backbone_dir), "prompt_len": 40, "steps": 2,
        "batch_size": 2, "batch_tokens": 2000, "eval_every": 10, "save_every": 1, "eval_examples": 4, "device": "cpu",
    }  # fmt: skip
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    script = [sys.executable, str(ROOT / "launch" / "pretrain_prompts.py"), str(path)]
    assert "state.safetensors" in refused(script, 24, out)
