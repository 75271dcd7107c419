"""The predicted memory is what a real pass through the backbone takes, counted tensor by tensor and by the system.

Run as a program, this file makes one pass in a process of its own and says what it took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.backbone import Backbone
from pretrain.devices import Fleet, known_devices, this_cpu
from pretrain.plan_memory import FILL, FUSED, GROUPED, activation_bytes, decoder_bytes, memory, weight_bytes
from pretrain.shapes import Shape, find_shape, shape_of_config
from pretrain.strategy import Strategy, Workload

PROMPT_LEN = 100


def lengths_of(tokens: int) -> np.ndarray:
    """Examples of 150 to 400 tokens, prompt included, shortest first, `tokens` together."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while (rest := tokens - sum(lengths)) > 0:
        lengths.append(int(rng.integers(150, 401)) if rest > 550 else rest)
    return np.sort(lengths)


def status(key: str) -> int:
    """Bytes that the kernel counts for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def one_pass(name: str, tokens: int, dtype: str) -> dict[str, float]:
    """Forward and back to the prompts through a backbone of a shape.

    Returns:
        Bytes of the process before the pass and at its peak, and of all tensors kept for the way back.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from corpora.rendering import Rendered, ends
    from pretrain.backbone import Backbone
    from pretrain.batching import example_losses, pack_flat
    from pretrain.distributed import start_processes
    from pretrain.forward import PromptedBackbone, run_batch

    start_processes("cpu")  # a job's process has DeepSpeed in memory, too
    shape = find_shape(name)
    fields = {key: value for key, value in shape.model_dump().items() if key not in ("name", "gated", "tied")}
    config = T5Config(
        **fields, feed_forward_proj="gated-gelu" if shape.gated else "relu", decoder_start_token_id=0
    )
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        if not shape.tied:
            model.lm_head.weight = torch.nn.Parameter(torch.empty(shape.vocab_size, shape.d_model))
    model = model.to(getattr(torch, dtype)).to_empty(device="cpu").requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(1e-3)  # memory does not depend on what they are
    net = PromptedBackbone(Backbone(model, name)).eval()

    lengths = lengths_of(tokens)
    ids = np.full(int((lengths - PROMPT_LEN).sum()), 7, np.int32)
    n = len(lengths)
    rendered = Rendered(ids, ends(lengths - PROMPT_LEN), np.zeros(n, np.int64))
    batch = pack_flat(
        rendered, PROMPT_LEN, np.arange(n) % 4, np.tile(np.array([32099, 5], np.int32), n), ends([2] * n),
        np.ones(n), 0, 0,
    )  # fmt: skip
    prompts = torch.randn(4, PROMPT_LEN, shape.d_model, requires_grad=True)
    frozen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = status("VmRSS")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        (logits,) = run_batch(net, prompts, batch)
        loss = (example_losses(logits, batch) * batch.example_weights_B).sum()
    loss.backward()
    return {"before": before, "peak": status("VmHWM"), "kept": sum(kept.values())}


def measured(name: str, tokens: int, dtype: str) -> dict[str, Any]:
    """`one_pass` in a process of its own, so that its peak is its own."""
    command = [sys.executable, __file__, name, str(tokens), dtype]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("name", "tokens", "dtype"),
    [
        ("google/t5-v1_1-small", 2048, "float32"),
        ("google/t5-v1_1-small", 6144, "float32"),
        ("google/t5-v1_1-base", 1024, "float32"),
        ("google/t5-v1_1-base", 2048, "float32"),
        ("google/t5-v1_1-small", 4096, "bfloat16"),
        ("google-t5/t5-small", 1536, "float32"),
    ],
)
def test_the_predicted_peak_is_the_measured_one_within_a_tenth(name: str, tokens: int, dtype: str) -> None:
    lengths = lengths_of(tokens).astype(float)
    work = Workload(
        prompt_len=PROMPT_LEN, examples=len(lengths), tokens=lengths.mean(),
        attended=(lengths**2).sum() / lengths.sum(), longest=int(lengths.max()),
    )  # fmt: skip
    shape, strategy, fleet = find_shape(name), Strategy(dtype=dtype), Fleet(this_cpu(1))
    found = measured(name, tokens, dtype)
    resting = replace(GROUPED, passing=0.0)
    kept = activation_bytes(shape, strategy, work, tokens, resting) + decoder_bytes(
        shape, strategy, work, tokens
    )
    assert kept == pytest.approx(found["kept"], rel=0.1)
    predicted = memory(shape, fleet, strategy, work, tokens)
    assert predicted.peak == pytest.approx(found["peak"], rel=0.1)


SHAPES = [find_shape(name) for name in ("google/t5-v1_1-small", "google/t5-v1_1-xxl", "google-t5/t5-3b")]
STRATEGIES = [
    Strategy(), Strategy(tensor_parallel=2), Strategy(3), Strategy(3, offload="cpu"), Strategy(weights="nf4"),
    Strategy(weights="fp8"), Strategy(checkpointing=True), Strategy(dtype="float32"),
]  # fmt: skip
H100 = Fleet(known_devices()["H100-80GB"], 2)


@given(st.sampled_from(SHAPES), st.sampled_from(STRATEGIES), st.integers(200, 10**5), st.integers(1, 10**5))
def test_more_tokens_never_take_less_memory(shape: Shape, strategy: Strategy, tokens: int, more: int) -> None:
    one, other = (memory(shape, H100, strategy, Workload(), size) for size in (tokens, tokens + more))
    # A GPU fills micro-batches up, so a few tokens more may take nothing.
    assert one.peak < other.peak or (one.peak == other.peak and more < FILL)
    assert one.weights == other.weights


@given(st.sampled_from(SHAPES), st.sampled_from([1, 2]), st.integers(1000, 50_000))
def test_tensor_parallel_halves_layers_and_keeps_tables(shape: Shape, degree: int, tokens: int) -> None:
    whole, half = (memory(shape, H100, Strategy(0, n), Workload(), tokens) for n in (degree, 2 * degree))
    tables = 2 * shape.other_weights
    assert half.weights - tables == pytest.approx((whole.weights - tables) / 2)
    assert half.activations < whole.activations


@given(st.sampled_from(SHAPES), st.integers(1000, 50_000))
def test_checkpointing_keeps_one_block_and_the_input_of_each(shape: Shape, tokens: int) -> None:
    whole, less = (
        activation_bytes(shape, Strategy(checkpointing=one), Workload(), tokens, FUSED)
        for one in (False, True)
    )
    inputs = 2 * tokens * shape.d_model * shape.num_layers
    passing = 2 * tokens * FUSED.passing * shape.d_ff + 4 * tokens * shape.d_model
    assert less - inputs - passing == pytest.approx((whole - inputs - passing) / shape.num_layers, rel=1e-6)


def test_an_11b_backbone_takes_what_its_count_says() -> None:
    shape = find_shape("google/t5-v1_1-xxl")
    assert shape.num_layers * shape.encoder_block == pytest.approx(4.63e9, rel=0.01)
    assert shape.weights == pytest.approx(11.13e9, rel=0.01)
    assert weight_bytes(shape, Strategy(), 1) == 2 * shape.weights
    assert weight_bytes(shape, Strategy(3), 8) == shape.weights / 4
    assert weight_bytes(shape, Strategy(3, offload="cpu"), 8) == 0
    assert 7.0e9 < weight_bytes(shape, Strategy(weights="nf4"), 1) < 7.8e9
    assert memory(shape, H100, Strategy(weights="nf4"), Workload(), 3072).allocated < 16e9


def test_the_count_of_weights_is_that_of_the_model(backbone: Backbone) -> None:
    shape = shape_of_config(backbone.model.config.to_dict(), "tiny")
    assert shape.weights == sum(parameter.numel() for parameter in backbone.model.parameters())


if __name__ == "__main__":
    print(json.dumps(one_pass(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
