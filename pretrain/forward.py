"""The frozen backbone with a prompt before its input, as one module that DeepSpeed holds, and its label scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from corpora.common.errors import UserError
from pretrain.backbone import Backbone
from pretrain.batching import PackedBatch
from pretrain.devices import FILL
from pretrain.distributed import ParallelUnit, Processes, import_deepspeed, keep_freed_memory, quiet
from pretrain.flex_packed import FlexAttention, round_up
from pretrain.frozen_layers import freeze_linears, freeze_norms
from pretrain.offload import check_dtype, fit_buffers, own_linears
from pretrain.packed_attention import Attend, attention_within
from pretrain.packed_encoder import Insert, encode_packed
from pretrain.settings import PretrainSettings
from pretrain.tensor_parallel import make_tensor_parallel


@dataclass(frozen=True)
class ForwardOptions:
    """How the encoder computes; all ways give the same but for rounding.

    Attributes:
        attention: `grouped`: example by example or by runs of like lengths, on any device; `flex`: torch's fused kernel, for GPUs.
        compiled: whether encoder blocks go through `torch.compile`.
        checkpointing: whether blocks keep their inputs alone and are computed twice.
    """

    attention: Literal["grouped", "flex"] = "grouped"
    compiled: bool = False
    checkpointing: bool = False

    @staticmethod
    def of(settings: PretrainSettings, device: torch.device) -> ForwardOptions:
        """What settings ask for, and on `device` the best of what they leave open.

        A GPU computes with the fused kernel, and compiles unless ZeRO 3 gathers layers by hooks.

        Raises:
            UserError: the fused kernel is asked for on a CPU.
        """
        on_gpu = device.type == "cuda"
        attention = settings.attention or ("flex" if on_gpu else "grouped")
        if attention == "flex" and device.type == "cpu":
            raise UserError(
                "attention is flex, which has no way back on a CPU; leave it open, or take grouped"
            )
        alone = settings.zero_stage != 3 and settings.deepspeed_config is None
        compiled = (on_gpu and alone) if settings.compiled is None else settings.compiled
        return ForwardOptions(attention, compiled, bool(settings.checkpointing))


class PromptedBackbone(torch.nn.Module):
    """What the DeepSpeed engine holds: the backbone, with no parameter that learns.

    The prompts come in as an argument and stay outside, float32 and whole on every process.
    """

    def __init__(self, backbone: Backbone, options: ForwardOptions = ForwardOptions()) -> None:
        super().__init__()
        self.options = options
        # Registered here, so that ZeRO 3 shards it and gathers what a layer needs.
        self.model = backbone.model
        self._backbone = (backbone,)
        freeze_norms(self.model)

    @property
    def backbone(self) -> Backbone:
        """The model without a prompt."""
        return self._backbone[0]

    def forward(
        self, prompts_KPD: torch.Tensor, batch: PackedBatch, decoder_ids: Sequence[torch.Tensor], first: int
    ) -> tuple[torch.Tensor, ...]:
        """Logits of the decoder's positions from `first` on, [B, T - first, V], for each of one or several inputs.

        Args:
            prompts_KPD: [K, P, D].
            batch: the examples; its own decoder ids are not looked at.
            decoder_ids: [B, T] tensors.
            first: first position of which there are logits.
        """
        backbone = self.backbone
        states_BLD, mask_BL = encode_prompted(backbone, prompts_KPD, batch, self.options)
        return tuple(backbone.decode(states_BLD, mask_BL, ids_BT, first) for ids_BT in decoder_ids)


def encode_prompted(
    backbone: Backbone, prompts_KPD: torch.Tensor, batch: PackedBatch, options: ForwardOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder states of a batch whose examples lie end to end, for `Backbone.decode`.

    Args:
        backbone: frozen, or any where no gradient is asked for.
        prompts_KPD: [K, P, D]; P may be 0.
        batch: the examples; its targets are not looked at.
        options: how it computes.

    Returns:
        [B, L, D] with the prompts' positions, zero at padding, and [B, L] true at tokens.
    """
    model, texts_MD = backbone.model, backbone.embed(batch.text_ids_M)
    prompts_XD = prompts_KPD.flatten(0, 1).to(texts_MD.dtype)
    flex = options.attention == "flex"
    tokens = round_up(batch.tokens, FILL) if flex else batch.tokens
    insert = Insert(batch, prompts_KPD.shape[1], tokens)
    attend: Attend
    if flex:
        attend = FlexAttention(model, batch.lengths_B, tokens)
    else:
        attend = attention_within(model, batch.lengths_B)
    states_ND = encode_packed(
        model, texts_MD, prompts_XD, insert, attend, options.compiled, options.checkpointing
    )
    return _padded(states_ND[: batch.tokens], batch.lengths_B)


def _padded(states_ND: torch.Tensor, lengths_B: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """States of examples that lie end to end as [B, L, D], zero at padding, and [B, L] true at tokens."""
    device, longest = states_ND.device, int(lengths_B.max())
    mask_BL = torch.from_numpy(np.arange(longest) < lengths_B[:, None])
    if bool(mask_BL.all()):
        return states_ND.view(len(lengths_B), longest, -1), mask_BL.to(device, non_blocking=True)
    places_N = mask_BL.flatten().nonzero()[:, 0].to(device, non_blocking=True)
    # index_copy would keep the states for its way back.
    padded = states_ND.new_zeros(mask_BL.numel(), states_ND.shape[1]).index_put((places_N,), states_ND)
    return padded.view(len(lengths_B), longest, -1), mask_BL.to(device, non_blocking=True)


def run_batch(
    net: torch.nn.Module,
    prompts_KPD: torch.Tensor,
    batch: PackedBatch,
    others: Sequence[PackedBatch] = (),
    first: int = 1,
) -> tuple[torch.Tensor, ...]:
    """`net` on a batch, and on the targets of `others`, whose inputs are the same, encoded once.

    Args:
        net: what `deepspeed_module` gave.
        prompts_KPD: [K, P, D].
        batch: the examples.
        others: the same examples with other targets.
        first: position of the first logits; 1 is the label's first token.

    Returns:
        [B, T - first, V] for `batch` and for each of `others`.
    """
    logits: tuple[torch.Tensor, ...] = net(
        prompts_KPD, batch, [one.decoder_ids_BT for one in (batch, *others)], first
    )
    return logits


def deepspeed_module(
    backbone: Backbone,
    config: dict[str, Any] | None,
    processes: Processes,
    options: ForwardOptions = ForwardOptions(),
) -> torch.nn.Module:
    """Hand the frozen backbone to DeepSpeed, cut first where processes share layers.

    Args:
        backbone: loaded, on any device; it is cut, and sharded by a ZeRO 3 engine, in place.
        config: DeepSpeed's configuration as in `launch/zero`; None: ZeRO 0.
        processes: of the job.
        options: how it computes.

    Returns:
        The module to call. It is the engine's own module: the engine's `forward` and `backward` count steps of an
        optimiser, and this engine has none.

    Raises:
        UserError: DeepSpeed refuses the configuration, or the backbone cannot be divided or offloaded so.
    """
    if processes.device.type == "cpu":
        keep_freed_memory()  # not while weights load: what they leave behind is needed no more
    config = dict(config or {"gradient_clipping": 0.0})
    zero = dict(config.get("zero_optimization", {}))
    if zero.get("stage", 0) in (1, 2):
        # These stages shard the state and the gradients of what the engine trains. It trains nothing, and DeepSpeed
        # refuses them without an optimiser of its own: what is left of them is stage 0.
        zero = {"stage": 0}
    module = PromptedBackbone(backbone, options).requires_grad_(False).eval()
    if zero.get("stage") == 3:
        freeze_linears(backbone.model)
    unit = None
    if processes.tensor_parallel > 1:
        # After all modules are in their places: it adds hooks to them.
        make_tensor_parallel(
            backbone.model, processes.tensor_parallel, processes.tensor_rank, processes.tensor_group, backbone.name
        )  # fmt: skip
        unit = ParallelUnit(processes)
    check_dtype(zero, str(backbone.model.dtype).removeprefix("torch."), processes.device.type)
    # Sharded as they were loaded, they are empty here.
    largest = max(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())
    config["zero_optimization"] = own_linears(fit_buffers(zero, largest, processes.data_world))
    config.setdefault("train_micro_batch_size_per_gpu", 1)  # asked for; micro-batches are cut by tokens
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
