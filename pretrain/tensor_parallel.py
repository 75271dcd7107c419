"""Each layer of a frozen T5 or mT5 shared among the processes of a tensor-parallel group.

Attention is cut by heads and the feed-forward by its middle width: q, k, v and wi by outputs, o and wo by inputs, the
position biases by heads. Embeddings, norms and the head stay whole (Shoeybi et al. 2019, Megatron-LM). A process then
holds and computes its own part of every layer, and a block needs four sums of [tokens, D] over the group: of what o and wo give, forward,
and of the gradients that reach the norms before q, k, v and before wi, backward. The gradient is summed at the norm's output, so once
for all the layers that read it.

Cross attention's keys and values read the encoder's final norm, which sums likewise; whoever uses encoder states for anything
else would count that gradient once a process.

DeepSpeed's AutoTP is not used: in 0.19.8 it sums a contiguous copy and drops it where a tensor is not contiguous, so that
the gradient is silently that of one part (docs/pretraining.md), and it sums the gradients of q, k and v apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corpora.common.errors import UserError

# Axis along which a layer's weight is cut, by the layer's name in transformers.
CUT_AXES = {
    "q": 0, "k": 0, "v": 0, "wi": 0, "wi_0": 0, "wi_1": 0, "o": 1, "wo": 1, "relative_attention_bias": 1,
}  # fmt: skip
SUMMED_OUTPUTS = ("o", "wo")


class _SumOutputs(torch.autograd.Function):
    """Sum over the group forward; every process's part has the sum's gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        return _sum(part, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _SumGradients(torch.autograd.Function):
    """The same input for every process's part of a layer: its gradient is the sum of what the parts give back."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.group), None


def _sum(tensor: Tensor, group: Any) -> Tensor:
    """A new tensor: autograd may still read the old one, and a collective wants a contiguous one."""
    total = tensor.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=group)
    return total


def check_degree(config: Any, degree: int, name: str) -> None:
    """Refuse to cut a backbone into parts that are not equal.

    Args:
        config: the backbone's.
        degree: processes of a tensor-parallel group.
        name: of the backbone.

    Raises:
        UserError: the heads or the feed-forward width cannot be divided, naming both.
    """
    heads, width = int(config.num_heads), int(config.d_ff)
    if heads % degree or width % degree:
        fits = [str(n) for n in range(1, heads + 1) if heads % n == 0 and width % n == 0]
        raise UserError(
            f"tensor_parallel is {degree}, and {name} has {heads} attention heads and a feed-forward width (d_ff) of "
            f"{width}; expected a number that divides both: {', '.join(fits)}"
        )


def weight_part(name: str, shape: Sequence[int], degree: int, rank: int) -> tuple[slice, ...]:
    """Which part of a weight one process of a group holds; all of it where the layer is not cut.

    Args:
        name: of the weight, as `encoder.block.0.layer.0.SelfAttention.q.weight`.
        shape: of the whole weight.
        degree: processes of the group.
        rank: which of them.

    Returns:
        Indices of the whole weight: for a loader that reads no more than its part.
    """
    part = [slice(0, size) for size in shape]
    axis = CUT_AXES.get(name.split(".")[-2]) if "." in name else None
    if axis is not None:
        size = shape[axis] // degree
        part[axis] = slice(rank * size, (rank + 1) * size)
    return tuple(part)


def cut_weights(model: Any, degree: int, rank: int) -> None:
    """Keep one process's part of every layer, in place; the rest is freed.

    A weight that holds its part already stays as it is, so a loader may have read no more than that.

    Args:
        model: a transformers T5 or mT5 that `check_degree` let pass; its layers are not quantised.
        degree: processes of a group.
        rank: which of them this is.

    Raises:
        ValueError: a weight is neither whole nor a part.
    """
    for path, module in model.named_modules():
        layer = path.rsplit(".", 1)[-1]
        if layer in CUT_AXES:
            _cut(module, path, degree, rank, _whole_size(model.config, layer))
        elif hasattr(module, "n_heads"):
            module.n_heads = model.config.num_heads // degree
            module.inner_dim = module.n_heads * model.config.d_kv


def _whole_size(config: Any, layer: str) -> int:
    """Length of a whole layer's weight along the axis that is cut."""
    if layer == "relative_attention_bias":
        return int(config.num_heads)
    return int(config.d_ff) if layer.startswith("w") else int(config.num_heads * config.d_kv)


def _cut(module: Any, path: str, degree: int, rank: int, whole: int) -> None:
    weight, axis = module.weight, CUT_AXES[path.rsplit(".", 1)[-1]]
    shape = tuple(
        getattr(weight, "ds_shape", weight.shape)
    )  # ZeRO 3 keeps the shape of what it has sharded there
    sharded = hasattr(weight, "ds_shape")
    if len(shape) != 2 or shape[axis] not in ([whole // degree] if sharded else [whole, whole // degree]):
        raise ValueError(
            f"{path} has a weight of shape {shape}; expected {whole} or, in {degree} parts, {whole // degree} along axis "
            f"{axis}, cut before it is sharded or quantised"
        )
    if not sharded:
        here = weight_part(f"{path}.weight", shape, degree, rank)
        part = weight.detach()[here] if shape[axis] == whole else weight.detach()
        # A copy where it is a view: that would keep the whole weight in memory.
        alone = part.is_contiguous() and part.untyped_storage().nbytes() == part.nbytes
        part = part if alone else part.clone(memory_format=torch.contiguous_format)
        module.weight = torch.nn.Parameter(part, requires_grad=False)
        shape = tuple(part.shape)
    if isinstance(module, torch.nn.Embedding):
        module.embedding_dim = shape[1]
    else:
        module.out_features, module.in_features = shape


def connect(model: Any, group: Any) -> None:
    """Let a model whose weights are cut sum over its group; every process calls layers in the same order.

    Modules stay what they are (a hook is added to their output), so that what gathers, quantises or compiles
    them still finds them.

    Args:
        model: after `cut_weights`.
        group: processes that hold the parts.
    """

    def sum_outputs(_module: Any, _inputs: Any, part: Tensor) -> Tensor:
        summed: Tensor = _SumOutputs.apply(part, group)
        return summed

    def sum_gradients(_module: Any, _inputs: Any, whole: Tensor) -> Tensor:
        same: Tensor = _SumGradients.apply(whole, group)
        return same

    for path, module in model.named_modules():
        leaf = path.rsplit(".", 1)[-1]
        if leaf in SUMMED_OUTPUTS:
            module.register_forward_hook(sum_outputs)
        elif leaf == "layer_norm" or path == "encoder.final_layer_norm":
            module.register_forward_hook(sum_gradients)


def make_tensor_parallel(model: Any, degree: int, rank: int, group: Any, name: str) -> None:
    """Cut a model's weights, where its loader has not, and connect it to its group.

    Args:
        model: a transformers T5 or mT5.
        degree: processes of the group.
        rank: which of them this is.
        group: the process group.
        name: what an error calls the model.

    Raises:
        UserError: it cannot be divided so.
    """
    check_degree(model.config, degree, name)
    cut_weights(model, degree, rank)
    connect(model, group)
