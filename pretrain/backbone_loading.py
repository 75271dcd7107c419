"""A backbone's weights from its files straight to where they are kept, one tensor at a time.

transformers' own loading keeps every shard mapped until the last tensor is placed, so that a whole checkpoint counts as
this process's memory, and at ZeRO 3 its first process holds the whole of it. Here a model is built without weights, its
files are opened one after the other, and each tensor is cast, moved, sliced, quantised or sharded on arrival: beside
what is kept there is at most one file and one tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from corpora.common.errors import UserError
from corpora.common.progress import Progress
from pretrain.distributed import ParallelUnit, Processes, import_deepspeed, quiet
from pretrain.fingerprint import ALIASES, TABLE
from pretrain.offload import check_dtype, fit_buffers, own_linears
from pretrain.quantise import check_weights, is_quantised, quantised_linear
from pretrain.settings import Weights
from pretrain.tensor_parallel import check_degree, weight_part
from pretrain.weight_files import open_weights, weight_files

SHOW_FROM = 4 * 2**30  # bytes of weights whose loading takes long enough to be shown
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Keeping:
    """Where and how weights are kept.

    Attributes:
        dtype: of everything that is not quantised.
        device: where.
        weights: how the blocks' linear layers are held; `full`: as `dtype` says.
        processes: those that share the backbone; None where each loads all of it.
        config: DeepSpeed's; only ZeRO 3 changes how weights are kept.
    """

    dtype: torch.dtype
    device: torch.device
    weights: Weights = "full"
    processes: Processes | None = None
    config: dict[str, Any] | None = None

    @property
    def zero(self) -> dict[str, Any] | None:
        """The block `zero_optimization` of ZeRO 3; None at other stages."""
        zero: dict[str, Any] = (self.config or {}).get("zero_optimization", {})
        return zero if self.processes is not None and zero.get("stage") == 3 else None

    @property
    def degree(self) -> int:
        """How many processes share each layer."""
        return 1 if self.processes is None else self.processes.tensor_parallel

    def check(self, config: Any, name: str) -> None:
        """Refuse what does not go together, before anything is read.

        Args:
            config: the model's.
            name: of the backbone.

        Raises:
            UserError: the weights cannot be held so, or the layers cannot be shared so.
        """
        cut = self.zero is not None or self.degree > 1
        dtype = str(self.dtype).removeprefix("torch.")
        check_weights(self.weights, dtype, self.device, cut)
        check_degree(config, self.degree, name)
        check_dtype(self.zero or {}, dtype, self.device.type)


def load_weights(
    kind: Any, config: Any, files: list[Path], keeping: Keeping, name: str
) -> tuple[Any, frozenset[str]]:
    """Build a model and fill it from its files.

    Args:
        kind: a transformers T5 or mT5 class.
        config: of the model.
        files: that hold its weights.
        keeping: where and how they are kept.
        name: of the backbone, for messages.

    Returns:
        The model, and the names of its tensors as files call them.

    Raises:
        UserError: weights are missing or have another shape than the configuration says.
    """
    config.dtype = keeping.dtype
    with torch.device("meta"):
        model = kind(config)
    shapes = {own: tensor.shape for own, tensor in model.state_dict().items()}
    largest = max(shape.numel() for shape in shapes.values())
    place, found = _Place(model, keeping, largest), set()
    large = sum(path.stat().st_size for path in files) >= SHOW_FROM
    with Progress(f"loading {name}", len(shapes), "weights") if large else contextlib.nullcontext() as bar:
        for path in files:
            for stored, read in open_weights(path):
                if stored not in shapes:
                    continue  # the first T5 files hold a bias that no model reads
                tensor = read()
                if tensor.shape != shapes[stored]:
                    raise UserError(
                        f"the backbone {name}: {stored} has shape {tuple(tensor.shape)}, its configuration asks for "
                        f"{tuple(shapes[stored])}"
                    )
                if stored not in ALIASES[:2] or TABLE not in found:
                    place(TABLE if stored in ALIASES[:2] else stored, tensor)
                found.add(TABLE if stored in ALIASES[:2] else stored)
                if bar is not None:
                    bar.advance()
    missing = set(shapes) - found - set(ALIASES)
    if HEAD not in found and config.model_type == "t5" and not config.scale_decoder_outputs:
        missing.add(HEAD)  # T5 1.1 has a head of its own
    if missing:
        raise UserError(
            f"the backbone {name} lacks {len(missing)} weights, {min(missing)} first; expected a whole model"
        )
    _tie(model, HEAD in found)
    return model, frozenset(shapes)


def _tie(model: Any, own_head: bool) -> None:
    """Let the stacks, and a head that is none of its own, share the embedding table."""
    table = model.shared.weight
    for stack in (model.encoder, model.decoder):
        stack.embed_tokens.weight = table
    if own_head:
        head = model.lm_head.weight
        with gathered(table, head):
            own_head = not torch.equal(table, head)
    if not own_head:
        model.lm_head.weight = table


def stored_weights(name_or_path: str) -> dict[str, Callable[[], torch.Tensor]]:
    """Readers of a model's weights by the names of its parameters, in the dtype and from the pages of its files.

    Args:
        name_or_path: a folder, or a hub name whose files are in the local cache.
    """
    readers = {stored: read for path in weight_files(name_or_path) for stored, read in open_weights(path)}
    for alias in ALIASES[:2]:
        if alias in readers:
            readers.setdefault(TABLE, readers[alias])
    return readers


def gathered(*parameters: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Have parameters whole for a while: under ZeRO 3 every process must ask; else they always are."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return contextlib.nullcontext()
    import deepspeed

    whole: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(sharded)
    return whole


class _Place:
    """Puts tensors where they are kept."""

    def __init__(self, model: Any, keeping: Keeping, largest: int) -> None:
        self._model, self._keeping, self._largest = model, keeping, largest
        self._sharded: Any = None

    def __call__(self, name: str, tensor: torch.Tensor) -> None:
        keeping, (module_name, _, leaf) = self._keeping, name.rpartition(".")
        if keeping.weights != "full" and is_quantised(name):
            parent, _, own = module_name.rpartition(".")
            # In its own precision: rounding to bfloat16 first would only add an error.
            linear = quantised_linear(tensor.to(keeping.device), keeping.weights)
            setattr(self._model.get_submodule(parent), own, linear)
            return
        if keeping.processes is not None:  # what is cut off never leaves the disk
            tensor = tensor[weight_part(name, tensor.shape, keeping.degree, keeping.processes.tensor_rank)]
        # A view into a file of which the rest is cut off or quantised would keep all of it mapped.
        view = keeping.weights == "full" and keeping.degree == 1
        kept = tensor.to(keeping.device, keeping.dtype, copy=not view, memory_format=torch.contiguous_format)
        kept = torch.nn.Parameter(kept, requires_grad=False)
        setattr(self._model.get_submodule(module_name), leaf, kept)
        if keeping.zero is not None:
            self._shard(kept, keeping.zero)

    def _shard(self, parameter: Any, zero: dict[str, Any]) -> None:
        """Keep this process's part of a parameter and let go of the rest, as DeepSpeed's engine would later."""
        if self._sharded is not None:
            self._sharded.convert_to_zero_parameters(param_list=[parameter])
            return
        processes = self._keeping.processes
        assert processes is not None
        deepspeed = import_deepspeed(parameter.device.type)
        zero = own_linears(fit_buffers(zero, self._largest, processes.data_world))
        on_disk = zero.get("offload_param", {}).get("device") == "nvme"
        holder = torch.nn.Module()
        holder.weight = parameter
        with quiet():
            deepspeed.zero.Init(
                module=holder,
                data_parallel_group=processes.data_group,
                config_dict_or_path={
                    "train_micro_batch_size_per_gpu": 1, **(self._keeping.config or {}), "zero_optimization": zero,
                },
                remote_device="nvme" if on_disk else None,
                dtype=self._keeping.dtype,
                mpu=ParallelUnit(processes) if processes.tensor_parallel > 1 else None,
            )  # fmt: skip
        self._sharded = parameter
