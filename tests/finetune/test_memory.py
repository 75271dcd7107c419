"""The memory that tuning takes."""

from __future__ import annotations

import numpy as np
import torch

from finetune.memory import begin_peak, peak_bytes

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
