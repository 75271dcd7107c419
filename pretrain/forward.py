"""The frozen backbone with a prompt before its input, as one module that DeepSpeed holds, and its label scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from corpora.common.errors import UserError
from pretrain.backbone import Backbone
from pretrain.batching import Batch
from pretrain.distributed import ParallelUnit, Processes, import_deepspeed, quiet
from pretrain.offload import fit_buffers
from pretrain.prompts import insert_prompts
from pretrain.tensor_parallel import make_tensor_parallel


class PromptedBackbone(torch.nn.Module):
    """What the DeepSpeed engine holds: the backbone, with no parameter that learns.

    The prompts come in as an argument and stay outside, float32 and whole on every process.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = (
            backbone.model
        )  # registered here, so that ZeRO 3 shards it and gathers what a layer needs
        self._backbone = (backbone,)

    def forward(
        self,
        prompts_KPD: torch.Tensor,
        input_ids_BL: torch.Tensor,
        mask_BL: torch.Tensor,
        prompt_ids_B: torch.Tensor,
        *decoder_ids_BT: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Logits of the decoder's positions, [B, T, V], for each of one or several decoder inputs."""
        (backbone,) = self._backbone
        embeds_BLD = backbone.embed(input_ids_BL)
        embeds_BLD, mask_BL = insert_prompts(prompts_KPD, embeds_BLD, mask_BL, prompt_ids_B)
        states_BLD = backbone.encode(embeds_BLD, mask_BL)
        return tuple(backbone.decode(states_BLD, mask_BL, ids) for ids in decoder_ids_BT)


def run_batch(
    net: torch.nn.Module, prompts_KPD: torch.Tensor, batch: Batch, others: Sequence[Batch] = ()
) -> tuple[torch.Tensor, ...]:
    """`net` on a batch, [B, T, V]; and on the targets of `others`, whose inputs are the same, encoded once."""
    logits: tuple[torch.Tensor, ...] = net(
        prompts_KPD,
        batch.input_ids_BL,
        batch.mask_BL,
        batch.prompt_ids_B,
        *(one.decoder_ids_BT for one in (batch, *others)),
    )
    return logits


def deepspeed_module(
    backbone: Backbone, config: dict[str, Any] | None, processes: Processes
) -> torch.nn.Module:
    """Hand the frozen backbone to DeepSpeed, cut first where processes share layers.

    Args:
        backbone: loaded, on any device; it is cut, and sharded by a ZeRO 3 engine, in place.
        config: DeepSpeed's configuration as in `launch/zero`; None: ZeRO 0.
        processes: of the job.

    Returns:
        The module to call. It is the engine's own module: the engine's `forward` and `backward` count steps of an
        optimiser, and this engine has none.

    Raises:
        UserError: DeepSpeed refuses the configuration, or the backbone cannot be divided so.
    """
    config = dict(config or {"gradient_clipping": 0.0})
    zero = dict(config.get("zero_optimization", {}))
    if zero.get("stage", 0) in (1, 2):
        # These stages shard the state and the gradients of what the engine trains. It trains nothing, and DeepSpeed
        # refuses them without an optimiser of its own: what is left of them is stage 0.
        zero = {"stage": 0}
    unit = None
    if processes.tensor_parallel > 1:
        make_tensor_parallel(
            backbone.model, processes.tensor_parallel, processes.tensor_rank, processes.tensor_group, backbone.name
        )  # fmt: skip
        unit = ParallelUnit(processes)
    largest = max(parameter.numel() for parameter in backbone.model.parameters())
    config["zero_optimization"] = fit_buffers(zero, largest, processes.data_world)
    config.setdefault("train_micro_batch_size_per_gpu", 1)  # asked for; micro-batches are cut by tokens
    module = PromptedBackbone(backbone).requires_grad_(False).eval()
    deepspeed = import_deepspeed(processes.device.type)
    try:
        with quiet():
            engine, *_ = deepspeed.initialize(model=module, config=config, mpu=unit)
    except (deepspeed.DeepSpeedConfigError, ValueError, TypeError) as error:
        raise UserError(
            f"DeepSpeed refuses its configuration: {str(error).strip().splitlines()[0]}"
        ) from error
    inner: torch.nn.Module = engine.module
    inner.engine = (engine,)  # type: ignore[assignment]  # keeps it alive; a tuple, so not a submodule
    return inner
