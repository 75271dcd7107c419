"""The forward pass of a transformers T5 or mT5 through its own leaf modules, without what a frozen model pays for in vain.

transformers' stack builds the mask and adds it to the position bias again in every layer, and computes GELU in eight
kernels. Here both are done once, and on a CPU attention is two products around a softmax: at a few hundred tokens the
backward of the fused kernel takes longer in float32, and ten times as long in bfloat16. Every linear layer, norm and embedding is
still called as a module, so that ZeRO 3's gathering and layers put in their place (adapters) work. No dropout, no cache; float32 and bfloat16 (transformers keeps
`wo` in float32 for float16 alone).

Shapes besides docs/notation.md: H heads, W width of a head, Q queries, S keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.frozen_layers import middle_of


def encode(model: Any, embeds_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Encoder states, [B, L, D], after the final norm.

    Args:
        model: a T5 or mT5 for conditional generation.
        embeds_BLD: [B, L, D] input embeddings.
        mask_BL: [B, L] true where a token stands.
    """
    stack, length = model.encoder, embeds_BLD.shape[1]
    bias = _position_bias(stack, length, embeds_BLD.dtype) + _key_bias(mask_BL, embeds_BLD.dtype)
    hidden = embeds_BLD
    for block in stack.block:
        hidden = _self_attention(hidden, block.layer[0], bias)
        hidden = _feed_forward(hidden, block.layer[1])
    states: Tensor = stack.final_layer_norm(hidden)
    return states


def decode(model: Any, states_BLD: Tensor, mask_BL: Tensor, decoder_ids_RT: Tensor) -> Tensor:
    """The decoder's output, [R, T, D], after the final norm and before the head.

    An example may have several rows of decoder inputs, r of them each: they read its states where they lie, no copy is made.

    Args:
        model: a T5 or mT5 for conditional generation.
        states_BLD: [B, L, D] from `encode`.
        mask_BL: [B, L] as given to `encode`.
        decoder_ids_RT: [R, T] decoder inputs, R = B x r; an example's rows lie together.
    """
    stack, length = model.decoder, decoder_ids_RT.shape[1]
    hidden = stack.embed_tokens(decoder_ids_RT)
    above_TT = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
    bias = _position_bias(stack, length, hidden.dtype).masked_fill(above_TT, torch.finfo(hidden.dtype).min)
    cross_bias = _key_bias(mask_BL, hidden.dtype)
    for block in stack.block:
        hidden = _self_attention(hidden, block.layer[0], bias)
        hidden = hidden + _cross_attention(block.layer[1], hidden, states_BLD, cross_bias)
        hidden = _feed_forward(hidden, block.layer[2])
    output: Tensor = stack.final_layer_norm(hidden)
    return output


def _position_bias(stack: Any, length: int, dtype: torch.dtype) -> Tensor:
    """[1, H, L, L] of the first layer, which all layers share."""
    bias: Tensor = stack.block[0].layer[0].SelfAttention.compute_bias(length, length)
    return bias.to(dtype)


def _key_bias(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, S]: 0 at tokens, the smallest number at padding."""
    zeros = torch.zeros(mask_BL.shape, dtype=dtype, device=mask_BL.device)
    return zeros.masked_fill(~mask_BL.bool(), torch.finfo(dtype).min)[:, None, None, :]


def _self_attention(hidden: Tensor, layer: Any, bias: Tensor) -> Tensor:
    normed = layer.layer_norm(hidden)
    return hidden + _attention(layer.SelfAttention, normed, normed, bias)


def _cross_attention(layer: Any, hidden_RTD: Tensor, states_BLD: Tensor, bias_B11L: Tensor) -> Tensor:
    """[R, T, D] of what the decoder reads from the encoder; here queries do not see each other, so all of an example are as one row.

    Where few queries meet many frozen keys, W_k moves to the queries' side and W_v behind the mixing,
    q (W_k h) = (W_k^T q) h: keys and values, D x I products a token of the encoder, are never made.
    """
    attention, batch = layer.EncDecAttention, len(states_BLD)
    normed_BQD = layer.layer_norm(hidden_RTD).view(batch, -1, hidden_RTD.shape[-1])
    queries = normed_BQD.shape[1]
    width: int = attention.key_value_proj_dim
    if not (_plain(attention.k) and _plain(attention.v)) or 4 * queries > width:
        return _attention(attention, normed_BQD, states_BLD, bias_B11L).view_as(hidden_RTD)
    key_HWD = attention.k.weight.view(-1, width, states_BLD.shape[-1])
    value_HWD = attention.v.weight.view_as(key_HWD)
    heads = len(key_HWD)

    def by_head(rows: Tensor) -> Tensor:
        """[B, Q, H, ...] -> [H, B * Q, ...]"""
        return rows.permute(2, 0, 1, 3).reshape(heads, batch * queries, -1)

    def by_example(rows: Tensor) -> Tensor:
        """[H, B * Q, ...] -> [B, Q * H, ...]"""
        return rows.view(heads, batch, queries, -1).permute(1, 2, 0, 3).reshape(batch, queries * heads, -1)

    query = attention.q(normed_BQD).view(batch, queries, heads, width)
    asked_BXD = by_example(torch.bmm(by_head(query), key_HWD))
    mixed_BXD: Tensor = _ReadStates.apply(asked_BXD, states_BLD, bias_B11L[:, 0])
    mixed = torch.bmm(by_head(mixed_BXD.view(batch, queries, heads, -1)), value_HWD.mT)
    output: Tensor = attention.o(by_example(mixed).view(batch, queries, heads * width))
    return output.view_as(hidden_RTD)


class _ReadStates(torch.autograd.Function):
    """softmax(asked states^T + bias) states: [B, X, D], [B, L, D], [B, 1, L] -> [B, X, D]; one product for the states' gradient."""

    @staticmethod
    def forward(ctx: Any, asked_BXD: Tensor, states_BLD: Tensor, bias_B1L: Tensor) -> Tensor:
        weights_BXL = torch.baddbmm(bias_B1L, asked_BXD, states_BLD.mT).softmax(-1)
        ctx.save_for_backward(asked_BXD, states_BLD, weights_BXL)
        return torch.bmm(weights_BXL, states_BLD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        asked_BXD, states_BLD, weights_BXL = ctx.saved_tensors
        (grad_BXD,) = grads
        scores_BXL = torch._softmax_backward_data(
            torch.bmm(grad_BXD, states_BLD.mT), weights_BXL, -1, weights_BXL.dtype
        )
        to_states = torch.bmm(torch.cat([weights_BXL, scores_BXL], 1).mT, torch.cat([grad_BXD, asked_BXD], 1))
        return torch.bmm(scores_BXL, states_BLD), to_states, None


def _plain(linear: Any) -> bool:
    """Whether a layer is x W alone, W at hand and frozen: no adapter, no quantised layer, none that ZeRO 3 gathers."""
    return (
        type(linear) is torch.nn.Linear
        and not linear.weight.requires_grad
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )


def _attention(attention: Any, queries_BQD: Tensor, keys_BSD: Tensor, bias: Tensor) -> Tensor:
    """[B, Q, D] of attention with a bias that broadcasts to [B, H, Q, S]; T5 does not scale."""
    batch, width = len(queries_BQD), attention.key_value_proj_dim

    def heads(flat: Tensor) -> Tensor:
        return flat.view(batch, flat.shape[1], -1, width).transpose(1, 2)

    query, key, value = (
        heads(attention.q(queries_BQD)),
        heads(attention.k(keys_BSD)),
        heads(attention.v(keys_BSD)),
    )
    bias = bias.expand(batch, query.shape[1], query.shape[2], key.shape[2])
    if query.device.type == "cpu":
        scores = torch.baddbmm(bias.flatten(0, 1), query.flatten(0, 1), key.flatten(0, 1).mT)
        mixed = torch.bmm(scores.softmax(-1), value.flatten(0, 1)).view_as(query)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    output: Tensor = attention.o(mixed.transpose(1, 2).flatten(2))
    return output


def _feed_forward(hidden: Tensor, layer: Any) -> Tensor:
    dense = layer.DenseReluDense
    return hidden + dense.wo(middle_of(dense, layer.layer_norm(hidden)))
