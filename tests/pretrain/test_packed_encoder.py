"""Examples end to end, each after its own prompt: the losses and prompt gradients of transformers' T5, one example at a time."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from corpora.rendering import Rendered
from pretrain import flex_packed
from pretrain.backbone import Backbone
from pretrain.batching import PackedBatch, end_to_end, example_losses, pack_flat
from pretrain.distributed import start_processes
from pretrain.forward import ForwardOptions, PromptedBackbone, deepspeed_module, run_batch
from pretrain.packed_attention import make_runs

P, VOCABULARY = 3, 60
PLAIN = ForwardOptions()
PROJECTIONS = ("relu", "gated-gelu", "gated-silu")


def tiny(
    projection: str, family: str = "t5", dtype: torch.dtype = torch.float64, layers: int = 2, width: int = 12
) -> Any:
    """A random model whose position biases and norms are no constants and whose heads are not d_model wide."""
    config_class, model_class = (
        (T5Config, T5ForConditionalGeneration) if family == "t5" else (MT5Config, MT5ForConditionalGeneration)
    )
    config = config_class(
        vocab_size=VOCABULARY, d_model=16, d_kv=width, d_ff=24, num_layers=layers, num_decoder_layers=3, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, decoder_start_token_id=0,
        feed_forward_proj=projection,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                torch.nn.init.normal_(parameter)
            elif "layer_norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(False).to(dtype)


def batch_of(texts: list[list[int]], words: list[list[int]], prompts: list[int]) -> PackedBatch:
    rendered = Rendered(
        *end_to_end([np.array(text, np.int32) for text in texts]), np.zeros(len(texts), np.int64)
    )
    targets = end_to_end([np.array([50, *word], np.int32) for word in words])
    return pack_flat(rendered, P, np.array(prompts), *targets, np.ones(len(texts)), 0, 0)


def drawn_prompts(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, P, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype).requires_grad_()  # fmt: skip


def plain(
    model: Any, prompts_KPD: torch.Tensor, texts: list[list[int]], words: list[list[int]], which: list[int]
) -> torch.Tensor:
    """[B] losses of transformers' own forward, example by example."""
    losses = []
    for text, word, prompt in zip(texts, words, which, strict=True):
        embeds = torch.cat(
            [prompts_KPD[prompt], model.get_input_embeddings()(torch.tensor(text, dtype=torch.int64))]
        )[None]
        decoder = torch.tensor([[0, 50, *word[:-1]]])
        logits = model(inputs_embeds=embeds, decoder_input_ids=decoder, use_cache=False).logits[0, 1:]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(word)))
    return torch.stack(losses)


def packed(
    model: Any,
    prompts_KPD: torch.Tensor,
    texts: list[list[int]],
    words: list[list[int]],
    which: list[int],
    options: ForwardOptions = PLAIN,
) -> torch.Tensor:
    batch = batch_of(texts, words, which)
    (logits,) = PromptedBackbone(Backbone(model, "tiny"), options)(
        prompts_KPD, batch, [batch.decoder_ids_BT], 1
    )
    log_probs = logits.log_softmax(-1).gather(-1, batch.target_ids_BT[:, 1:, None])[..., 0]
    weights_BT = batch.target_weights_BT[:, 1:]
    return -(log_probs * weights_BT).sum(1) / weights_BT.sum(1)


examples = st.lists(
    st.tuples(
        st.lists(st.integers(1, 49), max_size=40),
        st.lists(st.integers(1, 49), min_size=1, max_size=3),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("family", ["t5", "mt5"])
@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(drawn=examples)
def test_losses_and_prompt_gradients_are_those_of_transformers_in_float64(
    projection: str, family: str, drawn: list[tuple[list[int], list[int], int]]
) -> None:
    texts, words, which = (list(column) for column in zip(*drawn, strict=True))
    found = []
    for way in (plain, packed):
        prompts_KPD = drawn_prompts(torch.float64)
        losses_B = way(tiny(projection, family), prompts_KPD, texts, words, which)
        found.append((losses_B, *torch.autograd.grad(losses_B.square().sum(), prompts_KPD)))
    # Norms and softmax compute in float32 on both sides.
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    assert (found[1][1] - found[0][1]).norm() < 1e-5 * found[0][1].norm()


@pytest.mark.parametrize(("projection", "width"), [*((each, 12) for each in PROJECTIONS), ("gated-gelu", 32)])
def test_in_bfloat16_it_is_as_near_to_float32_as_transformers_is(projection: str, width: int) -> None:
    """In the middle of several draws: a relu that rounding turns on or off decides a single one, for either side."""
    words, which = [[7], [8, 9], [10], [11]], [0, 1, 1, 0]
    ratios = []
    for seed in range(11):
        rng = np.random.default_rng(seed)
        texts = [rng.integers(1, 50, n).tolist() for n in (5, 17, 18, 40)]
        gradients = {}
        for name, way, dtype in (
            ("exact", plain, torch.float32), ("theirs", plain, torch.bfloat16), ("ours", packed, torch.bfloat16),
        ):  # fmt: skip
            model = tiny(projection, dtype=torch.bfloat16, width=width).to(
                dtype
            )  # weights that bfloat16 holds
            prompts_KPD = drawn_prompts(torch.bfloat16).detach().to(dtype).requires_grad_()
            losses_B = way(model, prompts_KPD, texts, words, which)
            gradients[name] = torch.autograd.grad(losses_B.sum(), prompts_KPD)[0].float()
        error, their_error = ((gradients[name] - gradients["exact"]).norm() for name in ("ours", "theirs"))
        ratios.append(float(error / their_error))
    assert 0 < np.median(ratios) < 1.3


def test_an_example_sees_no_other_and_no_other_prompt() -> None:
    model, prompts_KPD = tiny("gated-gelu"), drawn_prompts(torch.float64)
    texts, words, which = [[5, 6, 7], [8, 9], [1, 2, 3, 4]], [[7], [8], [9]], [0, 1, 0]
    first_B = packed(model, prompts_KPD, texts, words, which)
    (grad_KPD,) = torch.autograd.grad(first_B[1], prompts_KPD, retain_graph=True)
    assert grad_KPD[0].abs().max() == 0 and grad_KPD[1].abs().min() > 0
    second_B = packed(model, prompts_KPD, [[30, 31], [8, 9], [32]], words, [1, 1, 0])
    torch.testing.assert_close(second_B[1], first_B[1], rtol=1e-9, atol=0)
    assert abs(float((second_B[0] - first_B[0]).detach())) > 1e-4


@pytest.mark.parametrize(("projection", "middles"), [("relu", 1), ("gated-gelu", 2)])
def test_nothing_is_kept_for_gradients_of_weights_or_texts(projection: str, middles: int) -> None:
    model = tiny(projection, dtype=torch.float32)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        packed(model, drawn_prompts(torch.float32), [[5] * 20, [6] * 25], [[7], [8]], [0, 1])
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    inside = {tensor.data_ptr() for tensor in kept if tensor.shape[0] == 51 and tensor.ndim == 2} - weights
    # Norms' inputs and scales (the first block's first reads prompts alone), relu's outputs or what the gate reads; attention's own
    # are wider.
    by_width = sorted(tensor.shape[1] for tensor in kept if tensor.data_ptr() in inside)
    assert by_width == sorted([16, 1, *[24] * middles, 16, 1, 16, 1, *[24] * middles, 16, 1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_at_zero_3_no_more_is_kept_and_no_gathered_weight() -> None:
    """One process gathers and lets go of weights as many do."""
    processes, texts, linear = start_processes("cpu"), [[5] * 20, [6] * 25], torch.nn.functional.linear
    found, gradients = [], []
    for stage in (0, 3):
        model, prompts_KPD = tiny("relu", dtype=torch.float32), drawn_prompts(torch.float32)
        sizes = {parameter.shape for parameter in model.parameters() if parameter.ndim == 2}
        zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage else {})}
        net = deepspeed_module(Backbone(model, "tiny"), {"zero_optimization": zero}, processes)
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # noqa: B023
            (logits,) = run_batch(net, prompts_KPD, batch_of(texts, [[7], [8]], [0, 1]))
        found.append(sorted(tensor.shape[1] for tensor in kept if tensor.ndim == 2 and len(tensor) == 51))
        gradients.append(torch.autograd.grad(logits.square().sum(), prompts_KPD)[0])
    assert found[1] == found[0]
    assert not [tensor for tensor in kept if {tensor.shape, tensor.shape[::-1]} & sizes]
    assert torch.nn.functional.linear is linear
    torch.testing.assert_close(*gradients)


def test_checkpointing_keeps_block_inputs_alone_and_changes_nothing() -> None:
    texts, words, which = [[5] * 20, [6] * 25, [7] * 9], [[7], [8], [9]], [0, 1, 0]
    found, sizes = [], []
    for checkpointing in (False, True):
        prompts_KPD, kept = drawn_prompts(torch.float32), [0]

        def count(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            options = ForwardOptions(checkpointing=checkpointing)
            losses_B = packed(
                tiny("relu", dtype=torch.float32, layers=5), prompts_KPD, texts, words, which, options
            )
        found.append(torch.autograd.grad(losses_B.sum(), prompts_KPD)[0])
        sizes.append(kept[0])
    assert torch.equal(*found)
    whole, inputs = sizes
    assert inputs < 0.35 * whole


def test_flex_attention_gives_the_losses_of_grouped_attention() -> None:
    """Forward alone: it has no backward on a CPU; the GPU bench compares gradients."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 50, n).tolist() for n in (5, 130, 17, 260, 40)]
    words, which = [[7], [8, 9], [10], [11], [12]], [0, 1, 1, 0, 1]
    with torch.no_grad():
        losses = [
            packed(tiny("gated-gelu", dtype=torch.float32), drawn_prompts(torch.float32), texts, words, which, options)
            for options in (ForwardOptions(), ForwardOptions(attention="flex"))
        ]  # fmt: skip
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


def test_one_compilation_serves_all_blocks_and_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced and guarded; the code that inductor makes for a GPU is the GPU bench's to check."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    flex_packed.compiled.cache_clear()

    texts, words, which = [[5] * 20, [6] * 25], [[7], [8]], [0, 1]
    model = tiny("relu", dtype=torch.float32, layers=4)
    with torch.no_grad():
        plain_B = packed(model, drawn_prompts(torch.float32), texts, words, which)
        torch._dynamo.reset()
        counters.clear()
        options = ForwardOptions(attention="flex", compiled=True)
        for some in (texts, [[5] * 31, [6] * 4]):
            compiled_B = packed(model, drawn_prompts(torch.float32), some, words, which, options)
            if some is texts:
                torch.testing.assert_close(compiled_B, plain_B, rtol=1e-4, atol=1e-4)
    # One of the block, and one that flex attention makes of itself in the first block, which is not compiled.
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    flex_packed.compiled.cache_clear()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=60))
def test_runs_hold_all_tokens_in_order_with_little_padding(lengths: list[int]) -> None:
    lengths_B = np.sort(np.array(lengths))
    runs = make_runs(lengths_B, 8, torch.device("cpu"))
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
    assert runs[-1].stop == lengths_B.sum() and sum(run.examples for run in runs) == len(lengths)
    for run in runs:
        padded = run.examples * run.longest
        assert run.stop - run.start >= 0.95 * padded
        assert (run.places is None) == (padded == run.stop - run.start)


def test_the_mean_loss_of_a_batch_counts_the_label_alone_where_logits_start_there() -> None:
    batch = batch_of([[5, 6], [7]], [[9], [10, 11]], [0, 1])
    logits_BTV = torch.randn(2, 3, VOCABULARY, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(example_losses(logits_BTV[:, 1:], batch), example_losses(logits_BTV, batch))
