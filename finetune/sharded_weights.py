"""All weights of a large backbone, trained by all processes of a job together: data parallel with DeepSpeed's ZeRO.

Every process makes the same calls with the same examples and computes its own share of them. ZeRO 3 has collectives within
each pass, so all make the same number of passes; who has no example left runs one that counts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from finetune.calibrate import ItemSet, calibrated
from finetune.full_weights import optimizer_groups
from finetune.inputs import IntArray, Item
from finetune.memory import training_tokens
from finetune.score import Scores, score_items
from finetune.tune import TuneOptions
from pretrain.backbone import load_backbone
from pretrain.backbone_loading import stored_weights
from pretrain.batching import collate, example_losses, packed_batches
from pretrain.distributed import Processes, import_deepspeed, lost_process, quiet, start_processes

T = TypeVar("T")
WAIT = (
    24 * 3600.0
)  # seconds that a process waits for the others in one call: one may write or read a slow disk
BUCKET = 50_000_000  # most numbers of gradients that are sent at once; DeepSpeed's own is ten times that
PERSISTENT = 10_000  # numbers of a weight up to which ZeRO 3 leaves it whole, as in launch/zero/zero3.json


class ShardedWeights:
    """A trainable backbone in a DeepSpeed engine.

    At ZeRO 0 each process holds everything; 1 shards the optimiser (and float32 masters), 2 gradients, 3 weights. What
    `reset` goes back to are the files, mapped; what `keep` remembers is each process's share.
    """

    def __init__(self, name: str, device: str, options: TuneOptions, stage: int, dtype: str) -> None:
        """Load a backbone, at ZeRO 3 each tensor straight to its shards, and hand it to DeepSpeed.

        Args:
            name: folder or hub name.
            device: `cpu`, `cuda`, or `auto` for what the machine has.
            options: what all trials share.
            stage: of ZeRO.
            dtype: that it computes in; `bfloat16` with float32 masters, at ZeRO 1 to 3.

        Raises:
            PPTError: as `load_backbone`.
        """
        self.options, self._stage = options, stage
        self.processes: Processes = start_processes(device, timeout=WAIT)
        deepspeed = import_deepspeed(self.processes.device.type)
        config = engine_config(stage, dtype, options.clip)
        self.backbone = load_backbone(
            name, dtype, self.processes.device, processes=self.processes, deepspeed_config=config
        )
        self.backbone.model.requires_grad_(True)
        if stage == 3:
            _save_gathered_nothing(self.backbone.model)
        self._parameters: dict[str, Any] = dict(self.backbone.model.named_parameters())
        self._original = stored_weights(name)
        self._kept: dict[str, Tensor] = {}
        optimizer = torch.optim.AdamW(
            optimizer_groups(self._parameters.values(), options.ft_weight_decay), fused=True
        )
        with quiet(), lost_process():
            self._engine, *_ = deepspeed.initialize(
                model=_Whole(self.backbone.model), optimizer=optimizer, config=config
            )
        self._adam: Any = self._engine.optimizer if stage == 0 else self._engine.optimizer.optimizer

    @torch.no_grad()
    def reset(self) -> None:
        """Go back to the backbone's own weights; moments and steps of the optimiser are zero again."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        device = self.processes.device
        self._release_persistent()
        for name, parameter in self._parameters.items():
            stored = self._original[name]()
            if self._stage == 3:
                mine = self._share(stored).to(device)
                parameter.ds_tensor.copy_(mine)
                safe_set_local_fp32_param(parameter, mine.float())
            else:
                parameter.data.copy_(stored)
                safe_set_full_fp32_param(parameter, stored.to(device, torch.float32))
        self._gather_persistent()
        for state in self._adam.state.values():
            for value in state.values():
                value.zero_()  # in place: DeepSpeed holds views of them

    def backward(self, items: Sequence[Item], targets: Sequence[IntArray]) -> float:
        """Mean loss of a batch, the same on every process; the gradients are left with DeepSpeed."""
        processes, engine, backbone = self.processes, self._engine, self.backbone
        work = self._work(items)
        total = torch.zeros(1, device=processes.device)
        for number, (group, counts) in enumerate(work):
            batch = collate(
                [items[i].input_ids for i in group],
                [0] * len(group),
                [targets[i] for i in group],
                pad_id=backbone.pad_id,
                start_id=backbone.start_id,
                count=self.options.count,
                example_weights=[counts / len(items)] * len(group),
            ).to(processes.device)

            def loss(batch: Any = batch) -> Tensor:
                embeds_BLD = backbone.model.get_input_embeddings()(batch.input_ids_BL)
                logits_BTV = backbone.target_logits(embeds_BLD, batch.mask_BL, batch.decoder_ids_BT)
                return (example_losses(logits_BTV, batch) * batch.example_weights_B).sum()

            engine.set_gradient_accumulation_boundary(number == len(work) - 1)
            with lost_process():
                own = engine(loss)
                # DeepSpeed divides the sum of the gradients by the number of processes; a sum is what is wanted.
                engine.backward(own * processes.world)
            total += own.detach()
        return float(processes.sum(total))

    def _work(self, items: Sequence[Item]) -> list[tuple[NDArray[np.int64], float]]:
        return share_out(
            [len(item.input_ids) for item in items],
            self.options.batch_tokens,
            self.processes.rank,
            self.processes.world,
        )

    def update(self, learning_rate: float) -> None:
        """One step of AdamW, the gradient clipped by DeepSpeed before."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        with quiet(), lost_process():
            self._engine.step()

    def discard(self) -> None:
        """Let DeepSpeed clear its buffers: it skips a step whose gradient is not finite, and `reset` undoes any other."""
        self.update(0.0)

    def score(self, items: ItemSet) -> Scores:
        """Scores of examples by the weights as they are: each process scores a share, and all get all."""
        every = [*items.items, *items.content_free]
        rank, world = self.processes.rank, self.processes.world
        found: list[tuple[NDArray[np.int64], Scores]] = []
        for rows, budget in even_rounds(
            [len(item.input_ids) for item in every], self.options.batch_tokens, world
        ):
            mine = rows[rank]

            def scores(mine: NDArray[np.int64] = mine, budget: int = budget) -> Scores:
                return score_items(
                    self.backbone,
                    items.verbalizer,
                    [every[row] for row in mine],
                    None,
                    batch_tokens=budget,
                    length_normalised=self.options.length_normalised,
                )

            with lost_process():
                found.append((mine, self._engine.module(scores)))
        parts = [part for parts in self.processes.gather(found) for part in parts]
        _, first = np.unique(np.concatenate([rows for rows, _ in parts]), return_index=True)
        values = {
            field.name: np.concatenate([getattr(scores, field.name) for _, scores in parts])[first]
            for field in dataclasses.fields(Scores)
        }
        whole, n = Scores(**values), len(items.items)
        own = whole.of(slice(0, n))
        return calibrated(own, whole.of(slice(n, None))) if items.content_free else own

    @torch.no_grad()
    def keep(self) -> None:
        """Remember this process's share of the weights as they are, in the place of what was remembered before."""
        for name, parameter in self._parameters.items():
            share = parameter.ds_tensor if self._stage == 3 else self._share(parameter.data)
            if name not in self._kept:
                self._kept[name] = torch.empty_like(share, device="cpu")
            self._kept[name].copy_(share)

    @torch.no_grad()
    def recall(self) -> None:
        """Go back to what `keep` remembered, to be scored: training begins with `reset`, which sets masters too."""
        world, device = self.processes.world, self.processes.device
        self._release_persistent()
        for name, parameter in self._parameters.items():
            share = self._kept[name]
            if self._stage == 3:
                parameter.ds_tensor.copy_(share)
                continue
            parts = [torch.empty_like(share, device=device) for _ in range(world)]
            with lost_process():
                torch.distributed.all_gather(parts, share.to(device))
            parameter.data.copy_(torch.cat(parts)[: parameter.numel()].view_as(parameter))
        self._gather_persistent()

    def end(self) -> None:
        """Have DeepSpeed let go of them. At ZeRO 3 its own caches still hold each process's part until the process ends."""
        self._engine.destroy()

    def fit_gpu(self) -> None:
        """Choose the tokens of a micro-batch by the memory that is free on the fullest GPU."""
        numbers = sum(getattr(p, "ds_numel", p.numel()) for p in self._parameters.values())
        world, size = self.processes.world, torch.finfo(self.backbone.model.dtype).bits // 8
        # Gradients and AdamW's two moments are still to come, each sharded from its stage on.
        to_come = numbers * (size / (world if self._stage > 1 else 1) + 8 / (world if self._stage else 1))
        free, _ = torch.cuda.mem_get_info(self.device)
        tokens = min(self.processes.gather(training_tokens(self.backbone, free - to_come)))
        self.options = dataclasses.replace(self.options, batch_tokens=tokens)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.processes.device

    def _share(self, whole: Tensor) -> Tensor:
        """This process's part of a tensor as ZeRO 3 cuts it: equal parts of the flat tensor, the last one padded."""
        flat, (rank, world) = whole.reshape(-1), (self.processes.rank, self.processes.world)
        size = -(-flat.numel() // world)
        return F.pad(part := flat[rank * size : (rank + 1) * size], (0, size - part.numel()))

    def _persistent(self) -> list[Any]:
        """Small weights that ZeRO 3 leaves whole; between `_release_persistent` and `_gather_persistent` their shards change."""
        return list(self._engine.optimizer.persistent_parameters) if self._stage == 3 else []

    def _release_persistent(self) -> None:
        for parameter in self._persistent()[:1]:
            parameter.partition(self._persistent())

    def _gather_persistent(self) -> None:
        for parameter in self._persistent()[:1]:
            with lost_process():
                parameter.all_gather(self._persistent())


def engine_config(stage: int, dtype: str, clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration of full tuning."""
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        zero |= {"reduce_bucket_size": BUCKET, "overlap_comm": stage == 3}
    if stage == 3:
        zero |= {
            "memory_efficient_linear": False,  # it would replace torch's linear for the whole process
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_prefetch_bucket_size": BUCKET,
        }
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # asked for; micro-batches are cut by tokens
        "gradient_clipping": clip,
        "steps_per_print": 1_000_000_000,
        "zero_optimization": zero,
    }
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def share_out(
    lengths: Sequence[int], batch_tokens: int, rank: int, world: int
) -> list[tuple[NDArray[np.int64], float]]:
    """A process's micro-batches of a batch, as many as every other process has.

    Args:
        lengths: encoder tokens of each example.
        batch_tokens: most of a micro-batch.
        rank, world: which process of how many.

    Returns:
        Numbers of examples, and 1; or the shortest example and 0 where this process has none left.
    """
    groups = packed_batches(lengths, batch_tokens, multiple=world)
    passes = -(-len(groups) // world)
    idle = (groups[0][:1], 0.0)
    places = range(rank, passes * world, world)
    return [(groups[place], 1.0) if place < len(groups) else idle for place in places]


def even_rounds(
    lengths: Sequence[int], batch_tokens: int, world: int
) -> list[tuple[list[NDArray[np.int64]], int]]:
    """Examples dealt out so that in each round every process has as many, of similar length.

    What is scored makes as many passes of the decoder as its number of examples says, so equal numbers make equal passes.

    Args:
        lengths: encoder tokens of each example.
        batch_tokens: most of a process's part of a round; one longer example makes a part of its own.
        world: processes.

    Returns:
        Of each round the numbers of each process's examples, and their most tokens, padding included. Where examples run
        out the last of them stand in several parts.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")[::-1]  # the longest first: it says how many fit
    rounds, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        each = min(max(1, batch_tokens // longest), -(-(len(order) - start) // world))
        places = np.minimum(start + np.arange(each * world), len(order) - 1)
        rounds.append((list(order[places].reshape(each, world).T), each * longest))
        start += each * world
    return rounds


class _Whole(torch.nn.Module):
    """The backbone as the one module whose forward DeepSpeed hooks: whatever is computed with its layers is one pass."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        """What `compute` gives."""
        return compute()


class _Product(torch.autograd.Function):
    """x W^T; keeps the parameter W itself. F.linear keeps a view of it, and with the view what ZeRO 3 has gathered."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return F.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        inputs, weight = ctx.saved_tensors
        (grad,) = grads
        to_inputs = grad @ weight if ctx.needs_input_grad[0] else None
        return to_inputs, grad.flatten(0, -2).mT @ inputs.flatten(0, -2)


class _Linear(torch.nn.Module):
    """A linear layer without bias under ZeRO 3. [..., K] -> [..., M]."""

    def __init__(self, weight_MK: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_MK

    def forward(self, inputs: Tensor) -> Tensor:
        """`inputs` times the weight."""
        outputs: Tensor = _Product.apply(inputs, self.weight)
        return outputs


def _save_gathered_nothing(model: torch.nn.Module) -> None:
    """Put a `_Linear` of the same weight in the place of each linear layer."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear and child.bias is None:
                setattr(module, name, _Linear(child.weight))
