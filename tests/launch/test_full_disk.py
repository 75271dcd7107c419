"""Jobs on a disk that takes no more than a few kilobytes a file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.checkpoint import saved_steps
from pretrain.settings import PretrainSettings

ROOT = Path(__file__).parents[2]
SHAPE = {"d_model": 64, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 1, "num_decoder_layers": 1}


def refused(command: list[str], kibibytes: int, out: Path) -> list[str]:
    """Run a command that may write no more than that into any file; give the one line it ends with, and its warnings."""
    limited = ["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "bash", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        limited, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    found = [line for line in done.stderr.splitlines() if line.startswith("ppt: ")]
    assert len(found) == 1, done.stderr
    assert f"cannot write {out}" in found[0] and "file too large" in found[0]
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    kept = {name for name in files if not name.startswith("tensorboard/")}
    assert kept <= {".lock", "config.yaml", "metrics.jsonl"}
    return found + [line for line in done.stderr.splitlines() if line.startswith("warning: step ")]


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
    assert "/checkpoints/" in refused([*command, f"out={checkpoint}", "save_every=1"], 40, checkpoint)[0]
    refused([*command, f"out={final}", "save_every=100"], 40, final)


def settings(folder: Path, build_dir: Path, backbone_dir: Path) -> dict[str, Any]:
    return {
        "out": str(folder), "corpora": str(build_dir), "backbone": str(backbone_dir), "prompt_len": 40, "steps": 8,
        "batch_size": 2, "batch_tokens": 2000, "eval_every": 4, "save_every": 2, "eval_examples": 4, "device": "cpu",
        "log_every": 1,
    }  # fmt: skip


def test_pre_training_on_a_full_disk_goes_on_to_its_last_checkpoint_and_leaves_nothing_half_written(
    tmp_path: Path, build_dir: Path, backbone_dir: Path
) -> None:
    out = tmp_path / "run"
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump(settings(out, build_dir, backbone_dir)), encoding="utf-8")
    script = [sys.executable, str(ROOT / "launch" / "pretrain_prompts.py"), str(path)]
    line, *warnings = refused(script, 24, out)
    assert line.startswith(f"ppt: step 8: no checkpoint: cannot write {out}") and "state.safetensors" in line
    assert line.endswith("; there is no checkpoint yet; make room, the same command goes on from there")
    assert len(warnings) == 3  # at steps 2, 4 and 6
    assert "step 2: no checkpoint: cannot write" in warnings[0]
    assert warnings[0].endswith("; the run goes on and tries again at its next checkpoint")


def test_a_run_on_a_disk_that_is_full_for_a_while_ends_with_the_bytes_of_one_that_had_room(
    tmp_path: Path, build_dir: Path, backbone_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full from the second update, when a checkpoint exists, to the fifth: neither checkpoint nor metrics have room."""
    from pretrain.engine import pretrain

    whole = PretrainSettings(**settings(tmp_path / "whole", build_dir, backbone_dir))
    pretrain(whole)
    run = whole.model_copy(update={"out": tmp_path / "full"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept: list[int] = []

    def fill_and_free() -> bool:
        steps = saved_steps(run.out)
        if steps == [2] and not kept:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        if resource.getrlimit(resource.RLIMIT_FSIZE) != before:
            kept.append(steps[-1])
        if len(kept) > 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return False

    try:
        pretrain(run, should_stop=fill_and_free)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert set(kept) == {2}  # the last good one stayed
    text = capsys.readouterr().err
    assert "warning: step 4: no checkpoint: cannot write" in text
    assert f"the last good checkpoint is {run.out / 'checkpoints' / 'step-00000002'}" in text
    assert "rows wait in memory until there is room" in text
    for file in ("metrics.jsonl", "finished.json", "prompts/unified/prompt.safetensors"):
        assert (run.out / file).read_bytes() == (whole.out / file).read_bytes(), file
