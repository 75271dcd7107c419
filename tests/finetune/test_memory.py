"""The memory that tuning takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from finetune.memory import begin_peak, fitting_tokens, peak_bytes
from pretrain.backbone import load_backbone
from pretrain.shapes import find_shape

MIB = 2**20


def test_the_peak_holds_what_was_let_go_and_is_forgotten_when_tuning_begins() -> None:
    cpu = torch.device("cpu")
    large = np.ones(200 * MIB, dtype=np.uint8)
    del large
    begin_peak(cpu)
    before = peak_bytes(cpu)
    small = np.ones(80 * MIB, dtype=np.uint8)
    del small
    assert 70 * MIB < peak_bytes(cpu) - before < 120 * MIB


def test_what_a_process_keeps_of_freed_memory_is_forgotten_too() -> None:
    code = (
        "import numpy as np, torch\n"
        "from finetune.memory import begin_peak, peak_bytes\n"
        "from pretrain.distributed import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "large = [np.ones(2**20, dtype=np.uint8) for _ in range(300)]\n"
        "del large\n"
        "before = peak_bytes(torch.device('cpu'))\n"
        "begin_peak(torch.device('cpu'))\n"
        "print(before - peak_bytes(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 250 * MIB


def test_micro_batches_fit_the_memory_that_is_free(backbone_dir: Path) -> None:
    backbone = load_backbone(backbone_dir, dtype="bfloat16")
    shape = find_shape("google/t5-v1_1-xxl")
    for name in ("d_model", "d_kv", "num_heads", "d_ff", "num_layers", "num_decoder_layers", "vocab_size"):
        setattr(backbone.model.config, name, getattr(shape, name))
    # 24 blocks of T5-XXL keep about 2.6 MB a token in bfloat16 (docs/planning.md): 40 GB hold 12 thousand.
    assert fitting_tokens(backbone, 40e9) in range(8192, 16384)
    assert fitting_tokens(backbone, 20e9) * 2 in range(8192, 16385)
    assert fitting_tokens(backbone, 1e12) == 16384 and fitting_tokens(backbone, 1.0) == 1024
