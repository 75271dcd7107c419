"""T5's encoder over examples that lie end to end, without padding: forward, and back to the input alone.

Every linear layer, norm and embedding is called as a module of the transformers model, so that ZeRO 3's gathering, quantised layers
and layers that share their work among processes do theirs. No dropout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain.frozen_layers import middle_of
from pretrain.packed_attention import Attend


def encode_packed(
    model: Any, embeds_ND: Tensor, attend: Attend, compiled: bool = False, checkpointing: bool = False
) -> Tensor:
    """Encoder states, [N, D], after the final norm.

    Args:
        model: a T5 or mT5 for conditional generation, frozen.
        embeds_ND: [N, D] input embeddings of all examples, prompts in their places.
        attend: attention within each example, position bias included.
        compiled: run each block through `torch.compile`; all blocks share one compilation.
        checkpointing: keep each block's input alone and compute the rest once more on the way back.
    """
    run_block = _compiled_block() if compiled else _block
    hidden = embeds_ND
    for block in model.encoder.block:
        if checkpointing and torch.is_grad_enabled():
            # transformers' own does nothing in eval mode.
            hidden = checkpoint(
                run_block, block, hidden, attend, use_reentrant=False, preserve_rng_state=False
            )
        else:
            hidden = run_block(block, hidden, attend)
    states: Tensor = model.encoder.final_layer_norm(hidden)
    return states


@functools.cache
def _compiled_block() -> Callable[[Any, Tensor, Attend], Tensor]:
    compiled: Callable[[Any, Tensor, Attend], Tensor] = torch.compile(_block, dynamic=False)
    return compiled


def _block(block: Any, hidden: Tensor, attend: Attend) -> Tensor:
    layer, feed = block.layer[0], block.layer[1]
    attention = layer.SelfAttention
    normed = layer.layer_norm(hidden)
    mixed = attend(attention.q(normed), attention.k(normed), attention.v(normed))
    hidden = attention.o(mixed).add_(hidden)
    output: Tensor = feed.DenseReluDense.wo(middle_of(feed.DenseReluDense, feed.layer_norm(hidden)))
    return output.add_(hidden)
