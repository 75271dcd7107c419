"""Optimisers of backbone training.

Weights fall in four kinds: matrices (Muon by default), embeddings and norms (Adam, its rate in units of the tensor's own RMS),
the relative position bias (Adam at a rate of its own, because at the matrices' rate the decoder does not learn to
look at a sentinel's neighbourhood for a long time).
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan's Muon, as in torch.optim.Muon
NS_STEPS = 5


def orthogonalise(stack: Tensor, steps: int = NS_STEPS) -> Tensor:
    """Newton-Schulz iteration over matrices of one shape together: `torch.optim.Muon`'s, batched.

    Args:
        stack: [n, rows, columns].
        steps: iterations.

    Returns:
        [n, rows, columns] bfloat16, each matrix with its singular values near 1.
    """
    a, b, c = NS_COEFFICIENTS
    flipped = stack.shape[1] > stack.shape[2]
    x = (stack.mT if flipped else stack).to(torch.bfloat16).contiguous()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32).clamp(min=1e-7).to(x)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if flipped else x


def split_heads(stack: Tensor, parts: int, axis: int) -> Tensor:
    """[n, rows, columns] -> [n * parts, ...]: each matrix cut into its attention heads along `axis` (1 rows, 2 columns)."""
    if parts == 1:
        return stack
    count, rows, columns = stack.shape
    if axis == 1:
        return stack.view(count * parts, rows // parts, columns)
    return stack.view(count, rows, parts, columns // parts).transpose(1, 2).reshape(count * parts, rows, -1)


def join_heads(stack: Tensor, parts: int, axis: int) -> Tensor:
    """The inverse of `split_heads`."""
    if parts == 1:
        return stack
    count, rows, columns = stack.shape[0] // parts, stack.shape[1], stack.shape[2]
    if axis == 1:
        return stack.reshape(count, parts * rows, columns)
    return stack.view(count, parts, rows, columns).transpose(1, 2).reshape(count, rows, parts * columns)


class Muon:
    """Muon over many small matrices: the update of `torch.optim.Muon` (nesterov, its default rate adjustment).

    torch's own goes matrix by matrix; for a backbone of a few million weights that takes as long as the model's own step.
    Attention matrices are made orthogonal head by head, which is a quarter of the work at three heads and learns as well;
    the size of the update stays that of the whole matrix.

    Args:
        matrices: (matrix, heads, axis) each; heads 1 takes the matrix whole.
        momentum: share of the old momentum kept.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(
        self,
        matrices: list[tuple[nn.Parameter, int, int]],
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        alike: dict[tuple[torch.Size, int, int], list[nn.Parameter]] = defaultdict(list)
        for param, heads, axis in matrices:
            alike[(param.shape, heads, axis)].append(param)
        self.groups = [(params, heads, axis) for (_, heads, axis), params in alike.items()]
        self.buffers = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g, _, _ in self.groups]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update all matrices from their gradients; a matrix without one is taken to have a zero gradient."""
        for (params, heads, axis), buffer in zip(self.groups, self.buffers, strict=True):
            grads = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
            buffer.lerp_(grads, 1 - self.momentum)
            split = split_heads(grads.lerp_(buffer, self.momentum), heads, axis)
            update = join_heads(orthogonalise(split), heads, axis).to(params[0].dtype)
            rows, columns = params[0].shape
            rate = learning_rate * math.sqrt(max(1.0, rows / columns))
            tensors: list[Tensor] = list(params)
            torch._foreach_mul_(tensors, 1 - learning_rate * self.weight_decay)
            torch._foreach_add_(tensors, list(update.unbind(0)), alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        """Momentum buffers by name."""
        return {f"muon.{i}": buffer for i, buffer in enumerate(self.buffers)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for i, buffer in enumerate(self.buffers):
            buffer.copy_(tensors[f"muon.{i}"])


class RelativeAdam:
    """AdamW whose rate for each set of tensors is in units of the set's RMS, or absolute.

    Args:
        sets: (tensors, rate, relative, weight_decay) each; `relative` multiplies the rate by the set's present RMS.
        betas: decay of the two moments.
    """

    def __init__(
        self,
        sets: list[tuple[list[nn.Parameter], float, bool, float]],
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.sets = [entry for entry in sets if entry[0]]
        groups: list[dict[str, Any]] = [
            {"params": params, "lr": rate, "weight_decay": decay} for params, rate, _, decay in self.sets
        ]
        self.adam = torch.optim.AdamW(groups, betas=betas, eps=1e-8, foreach=True) if groups else None

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update; `scale` is the schedule's factor."""
        if self.adam is None:
            return
        for group, (params, rate, relative, _) in zip(self.adam.param_groups, self.sets, strict=True):
            size = 1.0
            if relative:
                squares = sum(float(norm) ** 2 for norm in torch._foreach_norm([*params]))
                size = max(math.sqrt(squares / sum(p.numel() for p in params)), 1e-3)
            group["lr"] = rate * size * scale
        self.adam.step()

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        every = [param for params, _, _, _ in self.sets for param in params]
        return [(f"adam.{i}", param) for i, param in enumerate(every)]

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by name."""
        if self.adam is None:
            return {}
        tensors = {}
        for name, param in self._named():
            for key, value in self.adam.state[param].items():
                tensors[f"{name}.{key}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if self.adam is None:
            return
        for name, param in self._named():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{name}.{key}" in tensors:
                    value = tensors[f"{name}.{key}"].clone()
                    self.adam.state[param][key] = value if key == "step" else value.to(param.device)


class Adafactor:
    """`torch.optim.Adafactor` (rates relative to each tensor's RMS by its own rule) behind the same three methods."""

    def __init__(self, params: list[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self.params, self.rate = params, learning_rate
        self.inner = torch.optim.Adafactor(params, lr=learning_rate, weight_decay=weight_decay, foreach=True)

    def step(self, scale: float) -> None:
        """One update; `scale` is the schedule's factor."""
        self.inner.param_groups[0]["lr"] = self.rate * scale
        self.inner.step()

    def state(self) -> dict[str, Tensor]:
        """Factored moments by name."""
        return {
            f"adafactor.{i}.{key}": value
            for i, param in enumerate(self.params)
            for key, value in self.inner.state[param].items()
            if isinstance(value, Tensor)
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, value in tensors.items():
            kind, number, key = name.split(".", 2)
            if kind == "adafactor":
                param = self.params[int(number)]
                self.inner.state[param][key] = (
                    value.clone() if key == "step" else value.clone().to(param.device)
                )


def attention_heads(name: str, heads: int) -> tuple[int, int]:
    """(heads, axis) of a matrix of T5 by its name: q, k and v hold heads in their rows, o in its columns."""
    if "Attention." not in name:
        return 1, 1
    return heads, 2 if name.endswith(".o.weight") else 1


class BackboneOptimizer:
    """The optimiser of a whole T5-shaped model.

    Args:
        model: the model; its position biases, embeddings and norms are told from its matrices by name and shape.
        kind: `muon`, `adamw` or `adafactor` for the matrices.
        learning_rate: of the matrices.
        embedding_learning_rate: of embeddings and norms, in units of their RMS.
        position_bias_learning_rate: of the relative position bias.
        weight_decay: of the matrices, decoupled.
    """

    def __init__(
        self,
        model: Any,
        kind: str,
        learning_rate: float,
        embedding_learning_rate: float,
        position_bias_learning_rate: float,
        weight_decay: float,
    ) -> None:
        self.learning_rate = learning_rate
        named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        self.params = [param for _, param in named]
        bias = [p for name, p in named if "relative_attention_bias" in name]
        embeddings = [p for name, p in named if name.startswith(("shared.", "lm_head."))]
        norms = [p for _, p in named if p.ndim == 1]
        taken = {id(p) for p in (*bias, *embeddings, *norms)}
        matrices = [(name, p) for name, p in named if id(p) not in taken]
        sets: list[tuple[list[nn.Parameter], float, bool, float]] = [
            ([p], embedding_learning_rate, True, 0.0) for p in embeddings
        ]
        sets.append((norms, embedding_learning_rate, True, 0.0))
        sets.append((bias, position_bias_learning_rate, False, 0.0))
        self.muon: Muon | None = None
        self.rest: RelativeAdam | Adafactor
        if kind == "adafactor":
            self.rest = Adafactor(self.params, learning_rate, weight_decay)
        else:
            if kind == "muon":
                split = [(p, *attention_heads(name, model.config.num_heads)) for name, p in matrices]
                self.muon = Muon(split, weight_decay=weight_decay)
            else:
                sets.append(([p for _, p in matrices], learning_rate, False, weight_decay))
            self.rest = RelativeAdam(sets)

    def step(self, scale: float) -> None:
        """One update of all weights, rates times `scale`."""
        if self.muon is not None:
            self.muon.step(self.learning_rate * scale)
        self.rest.step(scale)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for param in self.params:
            param.grad = None

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next update depends on."""
        return {**(self.muon.state() if self.muon else {}), **self.rest.state()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if self.muon:
            self.muon.load_state(tensors)
        self.rest.load_state(tensors)


def schedule(step: int, steps: int, warmup: int, kind: str, floor: float = 0.0) -> float:
    """Factor of all learning rates at update `step` (from 0).

    Args:
        step: updates done so far.
        steps: updates of the whole run.
        warmup: updates of linear warm-up.
        kind: `cosine`, `linear` or `constant`.
        floor: factor at the end of cosine and linear decay.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    if kind == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    if kind == "linear":
        return floor + (1 - floor) * (1 - done)
    return 1.0
