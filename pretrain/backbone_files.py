"""A trained backbone on disk, and the checkpoints of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from corpora.common.errors import UserError, nearest
from corpora.common.files import atomic_folder, machine_errors, read_json, write_json
from corpora.common.rng import derived_seed
from pretrain.backbone import DTYPES
from pretrain.checkpoint import checkpoint_path, drop_old_checkpoints
from pretrain.training_data import MixtureState

STRUCTURE = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")


def new_model(shape: dict[str, Any], vocab_size: int, seed: int) -> Any:
    """A random T5-shaped model, the same for the same seed.

    Args:
        shape: fields of `T5Config`; `tie_word_embeddings: false` gives it a head of its own, as T5 1.1 has.
        vocab_size: ids, unless `shape` asks for more.
        seed: of the weights.

    Raises:
        UserError: a field that T5 has not, or fewer ids than the tokenizer needs.
    """
    known = {*STRUCTURE, *T5Config().to_dict(), "feed_forward_proj", "tie_word_embeddings"}
    for name in shape:
        if name not in known:
            raise UserError(f'shape: unknown key "{name}"{nearest(name, known)}')
    fields = {"vocab_size": vocab_size, "decoder_start_token_id": 0, "pad_token_id": 0, **shape}
    if fields["vocab_size"] < vocab_size:
        raise UserError(
            f"shape: vocab_size is {fields['vocab_size']}, the tokenizer needs {vocab_size}; leave it out or raise it"
        )
    config = T5Config(**fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights") % 2**63)
        model = T5ForConditionalGeneration(config)
        if shape.get("tie_word_embeddings") is False:
            # T5Config forces a tied head, so it is untied by hand; its outputs are not scaled, so its weights are small.
            weight = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
            model.lm_head.weight = torch.nn.Parameter(weight)
    return model.float()


def is_tied(model: Any) -> bool:
    """Whether the head is the embedding itself."""
    return bool(model.lm_head.weight is model.shared.weight)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with machine_errors(path):  # straight to the file: the bytes of a large model would not fit beside it
        save_file(tensors, path, metadata={"format": "pt"})


def save_model(model: Any, folder: Path, dtype: str) -> None:
    """Write `config.json` and `model.safetensors` so that transformers loads the same function.

    Args:
        model: the model.
        folder: exists.
        dtype: `float32` or `bfloat16`, of the weights on disk.
    """
    aliases = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    if is_tied(model):
        aliases.add("lm_head.weight")
    tensors = {
        name: tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in aliases
    }
    _save_tensors(tensors, folder / "model.safetensors")
    fields = json.loads(model.config.to_json_string(use_diff=False))
    for name in ("transformers_version", "_name_or_path"):  # the second is a folder of one machine
        fields.pop(name, None)
    fields["architectures"] = [type(model).__name__]
    fields["tie_word_embeddings"] = is_tied(model)  # what T5Config reads its output scaling from
    fields["dtype"] = dtype
    write_json(folder / "config.json", fields)


def save_checkpoint(
    out: Path,
    model: Any,
    optimizer_tensors: dict[str, Tensor],
    state: MixtureState,
    sums: list[float],
    settings_hash: str,
) -> None:
    """Write everything that the next step depends on, then drop all checkpoints but the last two.

    Args:
        out: the run's folder.
        model: weights are kept in float32; the folder loads with `from_pretrained`.
        optimizer_tensors: `BackboneOptimizer.state()`.
        state: of the mixture; its step is the number of updates done.
        sums: running sums of the metrics not logged yet.
        settings_hash: of the settings and data, to refuse a resume under others.
    """
    with atomic_folder(checkpoint_path(out, state.step), replace=True) as partial:
        save_model(model, partial, "float32")
        moments = {name: tensor.cpu().contiguous() for name, tensor in optimizer_tensors.items()}
        _save_tensors(moments, partial / "optimizer.safetensors")
        write_json(
            partial / "state.json", {"mixture": asdict(state), "sums": sums, "settings": settings_hash}
        )
    drop_old_checkpoints(out)


def load_checkpoint(
    folder: Path, model: Any, settings_hash: str
) -> tuple[dict[str, Tensor], MixtureState, list[float]]:
    """Put a checkpoint's weights into `model`.

    Returns:
        (optimiser tensors, mixture state, running sums).

    Raises:
        UserError: the checkpoint was made under other settings or from other data.
    """
    found = read_json(folder / "state.json")
    if found["settings"] != settings_hash:
        raise UserError(
            f"{folder} was made with other settings or data; remove {folder.parent} or choose another out folder"
        )
    tensors = load_file(folder / "model.safetensors")
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return load_file(folder / "optimizer.safetensors"), MixtureState(**found["mixture"]), found["sums"]
