"""T5's encoder over examples that lie end to end, without padding: forward, and back to the prompts alone.

Every linear layer, norm and embedding is called as a module of the transformers model, so that ZeRO 3's gathering, quantised layers
and layers that share their work among processes do theirs. No dropout.

Shapes besides docs/notation.md: N encoder tokens of a micro-batch, M of them text, X = K x P rows of all prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain import flex_packed
from pretrain.batching import PackedBatch
from pretrain.frozen_layers import middle_of
from pretrain.packed_attention import Attend


class Insert:
    """Puts each example's prompt before its text: [M, ...] of texts and [X, ...] of prompts to [N, ...].

    Args:
        batch: the examples.
        prompt_len: P.
        tokens: N with what the micro-batch is filled up with; the rest is zero.
    """

    def __init__(self, batch: PackedBatch, prompt_len: int, tokens: int) -> None:
        self.tokens = tokens
        self.text_places_M, self.prompt_places_BP = batch.text_places_M, batch.prompt_places_BP
        within_P = torch.arange(prompt_len, device=batch.prompt_ids_B.device)
        self.rows_BP = (batch.prompt_ids_B[:, None] * prompt_len + within_P).flatten()

    def __call__(self, texts: Tensor, prompts: Tensor) -> Tensor:
        """`texts` learn nothing; the gradient of a prompt is the sum over its examples."""
        inserted: Tensor = _Inserted.apply(
            texts, prompts, self.text_places_M, self.prompt_places_BP, self.rows_BP, self.tokens
        )
        return inserted


class _Inserted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        texts: Tensor,
        prompts: Tensor,
        text_places: Tensor,
        places: Tensor,
        rows: Tensor,
        tokens: int,
    ) -> Tensor:
        ctx.save_for_backward(places, rows)
        ctx.prompts = len(prompts)
        inserted = texts.new_zeros(tokens, texts.shape[1])
        inserted.index_copy_(0, text_places, texts)
        return inserted.index_copy_(0, places, prompts.index_select(0, rows))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None, None, None]:
        places, rows = ctx.saved_tensors
        (grad,) = grads
        exact = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(ctx.prompts, grad.shape[1], dtype=exact, device=grad.device)
        total.index_add_(0, rows, grad.index_select(0, places).to(exact))
        return None, total.to(grad.dtype), None, None, None, None


def encode_packed(
    model: Any,
    texts_MD: Tensor,
    prompts_XD: Tensor,
    insert: Insert,
    attend: Attend,
    compiled: bool = False,
    checkpointing: bool = False,
) -> Tensor:
    """Encoder states, [N, D], after the final norm.

    Args:
        model: a T5 or mT5 for conditional generation, frozen.
        texts_MD: [M, D] input embeddings of all texts, without a gradient.
        prompts_XD: [X, D] rows of all prompts, in the same dtype.
        insert: puts prompts before their texts.
        attend: attention within each example, position bias included.
        compiled: run blocks through `torch.compile`; all but the first share one compilation.
        checkpointing: keep each block's input alone and compute the rest once more on the way back.
    """
    run_block: Callable[..., Tensor] = flex_packed.compiled(_block) if compiled else _block
    first_block: Callable[..., Tensor] = _first_block
    if checkpointing and torch.is_grad_enabled():
        # transformers' own does nothing in eval mode.
        run_block, first_block = _checkpointed(run_block), _checkpointed(first_block)
    first, *others = model.encoder.block
    hidden = first_block(first, texts_MD, prompts_XD, insert, attend)
    for block in others:
        hidden = run_block(block, hidden, attend)
    states: Tensor = model.encoder.final_layer_norm(hidden)
    return states


def _checkpointed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


def _first_block(block: Any, texts_MD: Tensor, prompts_XD: Tensor, insert: Insert, attend: Attend) -> Tensor:
    """The block that reads the input: T5's positions are in its scores, so prompts meet the linear layers once a prompt,
    not once an example, and texts have no way back through them."""
    layer = block.layer[0]
    attention = layer.SelfAttention
    with torch.no_grad():
        texts = layer.layer_norm(texts_MD)
        text_parts = [linear(texts) for linear in (attention.q, attention.k, attention.v)]
    prompts = layer.layer_norm(prompts_XD)
    prompt_parts = [linear(prompts) for linear in (attention.q, attention.k, attention.v)]
    mixed = attend(*(insert(text, prompt) for text, prompt in zip(text_parts, prompt_parts, strict=True)))
    return _fed_forward(block, attention.o(mixed).add_(insert(texts_MD, prompts_XD)))


def _block(block: Any, hidden: Tensor, attend: Attend) -> Tensor:
    layer = block.layer[0]
    attention = layer.SelfAttention
    normed = layer.layer_norm(hidden)
    mixed = attend(attention.q(normed), attention.k(normed), attention.v(normed))
    return _fed_forward(block, attention.o(mixed).add_(hidden))


def _fed_forward(block: Any, hidden: Tensor) -> Tensor:
    feed = block.layer[1]
    output: Tensor = feed.DenseReluDense.wo(middle_of(feed.DenseReluDense, feed.layer_norm(hidden)))
    return output.add_(hidden)
