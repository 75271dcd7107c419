"""Frozen layers in 8 and 4 bits and FP8: how far they are from full precision, and what they keep."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from corpora.build import build
from corpora.build_settings import BuildSettings
from corpora.common.errors import UserError
from pretrain.artifact import load_prompt
from pretrain.backbone import Backbone, load_backbone
from pretrain.distributed import Processes
from pretrain.engine import pretrain
from pretrain.prompts import insert_prompts
from pretrain.quantise import (
    BlockLinear,
    Fp8Linear,
    check_weights,
    is_quantised,
    quantised_linear,
    rows_to_fp8,
)
from pretrain.settings import PretrainSettings, Weights

POCKET = (
    Path(__file__).parents[2] / "launch" / "pocket" / "backbone"
)  # small, but trained: its weights mean something
WAYS: tuple[Weights, ...] = ("int8", "nf4", "fp8")


@pytest.fixture
def weight_MK() -> torch.Tensor:
    """[64, 128] weights of a usual size, some of them far out."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[3, 7], weight[40, 90] = 0.6, -0.5
    return weight


def inputs(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """[2, 5, 128] activations, one token much larger than the others."""
    made = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1))
    made[1, 2] *= 30
    return made.to(dtype).requires_grad_(True)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Norm of the difference by the norm of `other`."""
    return float((one.detach().float() - other.detach().float()).norm() / other.detach().float().norm())


def held_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize(("bits", "error"), [(8, 0.015), (4, 0.13)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_layer_multiplies_with_its_weights_as_they_count_and_gives_their_gradient(
    weight_MK: torch.Tensor, bits: int, error: float, dtype: torch.dtype
) -> None:
    layer = BlockLinear(weight_MK, bits)
    counts_MK = layer.weight_in(dtype)
    assert counts_MK.dtype == dtype and 0 < apart(counts_MK, weight_MK) < error
    ours, plain = inputs(dtype), inputs(dtype)
    upstream = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    out, wanted = layer(ours), torch.nn.functional.linear(plain, counts_MK)
    out.backward(upstream)
    wanted.backward(upstream)
    assert ours.grad is not None and plain.grad is not None
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(ours.grad, plain.grad)


def test_an_fp8_layer_multiplies_fp8_numbers_forward_and_backward(weight_MK: torch.Tensor) -> None:
    """Judged by the same numbers multiplied in float64."""

    def counted(values: torch.Tensor) -> torch.Tensor:
        fp8, scales = rows_to_fp8(values.detach().flatten(0, -2))
        return (fp8.double() * scales.double()).view(values.shape)

    layer, ours = Fp8Linear(weight_MK), inputs()
    upstream = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    out = layer(ours)
    out.backward(upstream)
    assert ours.grad is not None and out.dtype == ours.grad.dtype == torch.bfloat16
    assert apart(out, counted(ours) @ counted(weight_MK).T) < 4e-3  # bfloat16's rounding of the result
    assert apart(ours.grad, counted(upstream) @ counted(weight_MK.T.contiguous()).T) < 4e-3
    assert 1e-3 < apart(out, ours.float() @ weight_MK.T) < 0.05
    assert 1e-3 < apart(ours.grad, upstream.float() @ weight_MK) < 0.05


def test_a_row_of_zeros_and_a_row_of_huge_numbers_survive_fp8() -> None:
    fp8, scales = rows_to_fp8(torch.tensor([[0.0] * 16, [1e30] * 8 + [-1e30] * 8]))
    back = fp8.float() * scales
    assert torch.equal(back[0], torch.zeros(16))
    torch.testing.assert_close(back[1].abs(), torch.full((16,), 1e30), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("weights", "most"), [("int8", 1.1), ("nf4", 0.6), ("fp8", 2.1)])
def test_a_layer_keeps_no_weight_in_full_precision_and_nothing_of_its_inputs(
    weights: Weights, most: float
) -> None:
    layer = quantised_linear(torch.randn(256, 512) * 0.05, weights)
    code = 256 * 4 * 2  # int8's and NF4's tables of 256 levels do not grow with the layer
    assert held_bytes(layer) <= most * 256 * 512 + code
    assert not list(layer.parameters())
    saved: list[torch.Tensor] = []
    given = torch.randn(9, 512, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda x: x):
        out = layer(given)
    held = {tensor.data_ptr() for tensor in layer.buffers()}
    assert out.requires_grad and all(tensor.data_ptr() in held for tensor in saved)


@pytest.mark.parametrize("weights", WAYS)
@pytest.mark.parametrize("shape", [(7, 128), (2, 5, 128)])
def test_what_a_layer_gives_may_be_changed_in_place(
    weight_MK: torch.Tensor, weights: Weights, shape: tuple[int, ...]
) -> None:
    layer = quantised_linear(weight_MK, weights)
    one = torch.ones(shape, dtype=torch.bfloat16, requires_grad=True)
    other = torch.ones(shape, dtype=torch.bfloat16, requires_grad=True)
    out = layer(one).add_(one[..., :64])
    out.sum().backward()
    (layer(other) + other[..., :64]).sum().backward()
    assert one.grad is not None and out.shape == (*shape[:-1], 64)
    assert torch.equal(one.grad, other.grad)


def test_layers_that_take_the_same_inputs_quantise_them_once_until_they_change(
    weight_MK: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pretrain.quantise as quantise

    calls = []
    query, key = Fp8Linear(weight_MK), Fp8Linear(weight_MK * 2)
    monkeypatch.setattr(quantise, "rows_to_fp8", lambda values: calls.append(1) or rows_to_fp8(values))
    given = inputs().detach()
    first = query(given)
    key(given)
    assert len(calls) == 1
    given *= 0.5
    assert torch.equal(query(given), first * 0.5)
    query(given.clone())
    assert len(calls) == 3


def test_the_blocks_linear_layers_are_quantised_and_nothing_else() -> None:
    backbone = load_backbone(POCKET, "bfloat16", weights="int8")
    config = backbone.model.config
    layers = [module for module in backbone.model.modules() if isinstance(module, BlockLinear)]
    # An encoder block: q, k, v, o and a gated feed-forward of three; a decoder block q and o more.
    assert len(layers) == 7 * config.num_layers + 9 * config.num_decoder_layers
    left = {name for name, _ in backbone.model.named_parameters()}
    assert not any(is_quantised(name) for name in left)
    assert all("EncDecAttention" in name for name in left if name.endswith(("k.weight", "v.weight")))
    assert {".".join(name.split(".")[-2:]) for name in left} == {
        "shared.weight", "final_layer_norm.weight", "layer_norm.weight", "relative_attention_bias.weight",
        "k.weight", "v.weight",
    }  # fmt: skip
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}


def logits_and_gradient(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, 2, V] of fixed inputs, and the gradient of a prompt before them."""
    rng = torch.Generator().manual_seed(3)
    ids_BL = torch.randint(3, backbone.vocab_size, (8, 60), generator=rng)
    mask_BL = torch.ones(8, 60, dtype=torch.bool)
    mask_BL[3, 40:] = False
    prompt_KPD = backbone.embed(torch.randint(3, backbone.vocab_size, (1, 20), generator=rng)).float()
    prompt_KPD.requires_grad_(True)
    embeds_BLD, mask_BL = insert_prompts(
        prompt_KPD, backbone.embed(ids_BL), mask_BL, torch.zeros(8, dtype=torch.long)
    )
    decoder_ids_BT = torch.tensor([[0, 99]] * 8)
    logits_BTV = backbone.target_logits(embeds_BLD, mask_BL, decoder_ids_BT).float()
    targets_B = torch.randint(3, backbone.vocab_size, (8,), generator=rng)
    torch.nn.functional.cross_entropy(logits_BTV[:, 1], targets_B).backward()
    assert prompt_KPD.grad is not None
    return logits_BTV.detach(), prompt_KPD.grad


@pytest.fixture(scope="module")
def exact() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and gradient of the pocket backbone in float32."""
    return logits_and_gradient(load_backbone(POCKET))


@pytest.mark.parametrize(
    ("weights", "logits_error", "gradient_error", "cosine"),
    [("full", 0.01, 0.02, 0.999), ("int8", 0.02, 0.04, 0.999), ("fp8", 0.08, 0.18, 0.985), ("nf4", 0.18, 0.4, 0.94)],
)  # fmt: skip
def test_a_trained_backbones_logits_and_prompt_gradient_stay_close(
    exact: tuple[torch.Tensor, torch.Tensor], weights: Weights, logits_error: float, gradient_error: float, cosine: float
) -> None:  # fmt: skip
    logits_BTV, gradient_KPD = logits_and_gradient(load_backbone(POCKET, "bfloat16", weights=weights))
    assert apart(logits_BTV, exact[0]) < logits_error
    assert apart(gradient_KPD, exact[1]) < gradient_error
    angle = torch.nn.functional.cosine_similarity(gradient_KPD.flatten(), exact[1].flatten(), 0)
    assert float(angle) > cosine


@pytest.mark.parametrize("weights", WAYS)
def test_a_quantised_backbone_is_the_same_backbone(weights: Weights) -> None:
    whole, held = load_backbone(POCKET, "bfloat16"), load_backbone(POCKET, "bfloat16", weights=weights)
    assert held.fingerprint == whole.fingerprint
    assert held.embedding_rms == whole.embedding_rms
    assert (whole.weights, held.weights) == ("full", weights)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """Sentence pairs for the pocket backbone."""
    out = tmp_path_factory.mktemp("quantised") / "corpora"
    build(
        BuildSettings(
            text=[str(text_file)],
            tokenizer=str(POCKET),
            out=str(out),
            formats=["sentence_pair"],
            language="en",
        )
    )
    return out


def test_a_prompt_learns_on_quantised_weights_what_it_learns_on_whole_ones(
    corpora: Path, tmp_path: Path
) -> None:
    def held_out(weights: Weights) -> dict[int, float]:
        """Held-out loss by step."""
        settings = PretrainSettings(
            out=tmp_path / weights, corpora=corpora, backbone=str(POCKET), formats=["sentence_pair"], prompt_len=4,
            steps=8, batch_size=4, batch_tokens=2000, eval_every=4, eval_examples=8, schedule="constant", dtype="bfloat16",
            weights=weights, device="cpu", zero_stage=0, offload="none", tensor_parallel=1, checkpointing=False,
        )  # fmt: skip
        pretrain(settings)
        rows = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows if row["split"] == "validation"}

    whole = held_out("full")
    fell = whole[0] - min(whole.values())
    assert len(whole) == 3 and fell > 1
    for weights in WAYS:
        curve = held_out(weights)
        gaps = {step: abs(curve[step] - whole[step]) / fell for step in whole}
        assert curve.keys() == whole.keys()
        # A prompt that has learnt nothing yet stands where the loss is steepest.
        assert gaps.pop(0) < 0.25 and max(gaps.values()) < 0.05, (weights, curve, whole)
        _, info = load_prompt(tmp_path / weights / "prompts" / "sentence_pair")
        assert info.backbone_fingerprint == load_backbone(POCKET).fingerprint
        assert f"weights: {weights}" in (tmp_path / weights / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "int4"}, "int8"),
        ({"weights": "int8", "zero_stage": 3}, "weights is int8, zero_stage 3 and tensor_parallel 1"),
        ({"weights": "nf4", "tensor_parallel": 2}, "quantised layers are not cut"),
        ({"weights": "fp8"}, "weights is fp8 and dtype is float32"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PretrainSettings(out="o", corpora="c", backbone="b", **changes)


def test_what_this_machine_or_job_cannot_hold_is_refused_in_one_line(
    weight_MK: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="weights nf4 cannot be cut over processes"):
        load_backbone(
            POCKET,
            weights="nf4",
            processes=Processes(0, 2, cpu),
            deepspeed_config={"zero_optimization": {"stage": 3}},
        )
    with pytest.raises(UserError, match="weights int8 cannot be cut over processes"):
        load_backbone(POCKET, weights="int8", processes=Processes(0, 2, cpu, 2))
    with pytest.raises(UserError, match="fp8 go with dtype bfloat16, not float32"):
        load_backbone(POCKET, weights="fp8")
    with pytest.raises(UserError, match="multiples of 16"):
        quantised_linear(weight_MK[:, :120], "fp8")
    with pytest.raises(UserError, match='weights is "int4"; expected one of full, int8, nf4, fp8'):
        check_weights("int4", "float32", cpu)  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"nf4 need bitsandbytes; install it with .*\[quantise\]"):
        check_weights("nf4", "float32", cpu)
