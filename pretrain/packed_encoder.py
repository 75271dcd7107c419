"""T5's encoder over examples that lie end to end, without padding: forward, and back to the input alone.

Every linear layer, norm and embedding is called as a module of the transformers model, so that ZeRO 3's gathering, quantised layers
and layers that share their work among processes do theirs. No dropout.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pretrain.frozen_layers import middle_of
from pretrain.packed_attention import Attend


def encode_packed(model: Any, embeds_ND: Tensor, attend: Attend) -> Tensor:
    """Encoder states, [N, D], after the final norm.

    Args:
        model: a T5 or mT5 for conditional generation, frozen.
        embeds_ND: [N, D] input embeddings of all examples, prompts in their places.
        attend: attention within each example, position bias included.
    """
    hidden = embeds_ND
    for block in model.encoder.block:
        hidden = _block(block, hidden, attend)
    states: Tensor = model.encoder.final_layer_norm(hidden)
    return states


def _block(block: Any, hidden: Tensor, attend: Attend) -> Tensor:
    layer, feed = block.layer[0], block.layer[1]
    attention = layer.SelfAttention
    normed = layer.layer_norm(hidden)
    mixed = attend(attention.q(normed), attention.k(normed), attention.v(normed))
    hidden = attention.o(mixed).add_(hidden)
    output: Tensor = feed.DenseReluDense.wo(middle_of(feed.DenseReluDense, feed.layer_norm(hidden)))
    return output.add_(hidden)
