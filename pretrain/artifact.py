"""A prompt on disk: safetensors and JSON, checked when read; to and from other libraries."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load, save

from corpora.common.errors import UserError, nearest
from corpora.common.files import atomic_folder, dump_json, read_json, write_bytes_atomic, write_json
from corpora.formats import FORMATS
from corpora.tokenizer import Tokenizer
from pretrain.backbone import Backbone

SPACES = {
    "huggingface": 1.0,
    "scaled": 100.0,  # the released PPT code divides T5's word embeddings by 100
}


@dataclass(frozen=True)
class PromptInfo:
    """What `prompt.json` says of a prompt.

    Attributes:
        format: `sentence_pair`, `multiple_choice`, `single_text` or `unified`.
        backbone: name or folder of the backbone it belongs to.
        backbone_fingerprint, tokenizer_fingerprint: of that backbone, or None for an imported prompt that does not say.
        embedding_rms: RMS of that backbone's embedding table.
        corpus_manifest: hash of the task corpus' manifest, or None.
        step: optimiser step, or None.
        learning_rate: x embedding RMS, or None.
        seed: of the run, or None.
        dev_score: held-out or dev score as a fraction of 1, or None.
        licence: as its source states it, or None.
        task: the whole task as it was used, for a tuned prompt.
        space: always `huggingface`.
    """

    format: str
    backbone: str
    backbone_fingerprint: str | None
    tokenizer_fingerprint: str | None
    embedding_rms: float
    corpus_manifest: str | None = None
    step: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    dev_score: float | None = None
    licence: str | None = None
    task: dict[str, Any] | None = None
    space: str = "huggingface"


def prompt_fingerprint(prompt_PD: torch.Tensor) -> str:
    """SHA-256 of a prompt's shape and float32 bytes, as hex."""
    array = prompt_PD.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def save_prompt(folder: str | Path, prompt_PD: torch.Tensor, info: PromptInfo) -> None:
    """Write `prompt.safetensors` and `prompt.json`; a prompt that is there gives way.

    Args:
        folder: the prompt's folder.
        prompt_PD: [P, D].
        info: what it is.

    Raises:
        ValueError: it is not a finite [P, D] matrix.
        MachineError: the place cannot be written.
    """
    if prompt_PD.ndim != 2 or not bool(torch.isfinite(prompt_PD).all()):
        raise ValueError(f"a prompt is a finite [P, D] matrix; got shape {tuple(prompt_PD.shape)}")
    with atomic_folder(folder, replace=True) as partial:
        tensor = prompt_PD.detach().float().cpu().contiguous()
        write_bytes_atomic(partial / "prompt.safetensors", save({"prompt": tensor}))
        write_json(partial / "prompt.json", dataclasses.asdict(info))


def prompts_folder(root: str | Path) -> Path:
    """Where the prompts FORMAT/ lie: in `root` itself, or in its `prompts` where it is a run of `ppt pretrain`."""
    inside = Path(root) / "prompts"
    return inside if inside.is_dir() else Path(root)


def load_prompt(folder: str | Path) -> tuple[torch.Tensor, PromptInfo]:
    """Read a prompt.

    Returns:
        [P, D] float32 on the CPU, and what it is.

    Raises:
        UserError: a file is missing, unreadable or holds something else; every message names the file.
    """
    folder = Path(folder)
    path, about = folder / "prompt.safetensors", folder / "prompt.json"
    if not path.is_file() or not about.is_file():
        raise UserError(f"{folder} holds no prompt: expected prompt.safetensors and prompt.json in it")
    values = read_json(about)
    known = {field.name: field for field in dataclasses.fields(PromptInfo)}
    if not isinstance(values, dict):
        raise UserError(f"{about}: expected an object")
    for name in values:
        if name not in known:
            raise UserError(f'{about}: unknown field "{name}"{nearest(name, known)}')
    required = [name for name, field in known.items() if field.default is dataclasses.MISSING]
    for name in required:
        if name not in values:
            raise UserError(f'{about}: field "{name}" is missing')
    try:
        info = TypeAdapter(PromptInfo).validate_json(dump_json(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f'{about}: field "{first["loc"][0]}": {first["msg"]}') from error
    if info.space != "huggingface":
        raise UserError(
            f'{about}: space is "{info.space}", expected huggingface; bring it in with ppt prompts import'
        )
    if info.format not in FORMATS:
        raise UserError(f'{about}: format is "{info.format}"{nearest(info.format, FORMATS)}')
    try:
        tensors = load(path.read_bytes())
    except Exception as error:  # safetensors raises its own kind, which is no subclass of anything useful
        raise UserError(f"{path} is not a safetensors file: {error}") from error
    if set(tensors) != {"prompt"}:
        raise UserError(
            f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}, expected one tensor: prompt"
        )
    return _checked(tensors["prompt"], path), info


def _checked(prompt_PD: torch.Tensor, path: Path) -> torch.Tensor:
    if prompt_PD.ndim != 2 or not prompt_PD.is_floating_point() or 0 in prompt_PD.shape:
        raise UserError(
            f"{path}: the prompt is {prompt_PD.dtype} of shape {list(prompt_PD.shape)}, expected floats [P, D]"
        )
    if not bool(torch.isfinite(prompt_PD).all()):
        raise UserError(f"{path}: the prompt holds values that are not finite")
    return prompt_PD.float()


def check_backbone(info: PromptInfo, backbone: Backbone, tokenizer: Tokenizer | None = None) -> None:
    """Refuse a prompt of another backbone or tokenizer.

    Args:
        info: of the prompt.
        backbone: what it is to be used with.
        tokenizer: what its inputs are tokenised with, where that is at hand.

    Raises:
        UserError: the fingerprints differ; both sides are named.
    """
    if info.backbone_fingerprint is not None and info.backbone_fingerprint != backbone.fingerprint:
        raise UserError(
            f"the prompt belongs to the backbone {info.backbone} (fingerprint {info.backbone_fingerprint[:12]}), "
            f"not to {backbone.name} (fingerprint {backbone.fingerprint[:12]}); take that backbone or pre-train for this one"
        )
    theirs = info.tokenizer_fingerprint
    if tokenizer is not None and theirs is not None and theirs != tokenizer.fingerprint:
        raise UserError(
            f"the prompt was trained with the tokenizer of {info.backbone} (fingerprint {theirs[:12]}), "
            f"not with {tokenizer.name} (fingerprint {tokenizer.fingerprint[:12]}); take the first"
        )


def export_peft(folder: Path, out: Path) -> None:
    """Write a prompt as a folder that Hugging Face PEFT loads with the same logits.

    PEFT's default for sequence-to-sequence models is two prompt tables, the second never read by the encoder; here
    it is one.

    Args:
        folder: the prompt's folder.
        out: the folder to make.
    """
    prompt_PD, info = load_prompt(folder)
    with atomic_folder(out, replace=True) as partial:
        write_json(
            partial / "adapter_config.json",
            {
                "peft_type": "PROMPT_TUNING",
                "task_type": "SEQ_2_SEQ_LM",
                "base_model_name_or_path": info.backbone,
                "num_virtual_tokens": prompt_PD.shape[0],
                "token_dim": prompt_PD.shape[1],
                "num_transformer_submodules": 1,
                "prompt_tuning_init": "RANDOM",
                "inference_mode": True,
            },
        )
        write_bytes_atomic(
            partial / "adapter_model.safetensors", save({"prompt_embeddings": prompt_PD.contiguous()})
        )


def import_prompt(
    file: str | Path,
    out: str | Path,
    *,
    backbone: Backbone,
    format: str,
    space: str = "huggingface",
    licence: str | None = None,
) -> None:
    """Bring in a prompt that another library trained.

    Args:
        file: `.npy`, `.pt`/`.bin` (a bare tensor or one tensor by name; read without unpickling code) or
            `.safetensors` with one [P, D] tensor.
        out: the prompt's folder.
        backbone: the backbone it was trained on.
        format: its prompt group.
        space: `huggingface`, or `scaled` for the released PPT code's space, converted by x 100.
        licence: as its source states it.

    Raises:
        UserError: the file holds no finite [P, D] matrix, its width is not the backbone's, or the format or space is
            unknown.
    """
    path = Path(file)
    if format not in FORMATS:
        raise UserError(f'"{format}" is no format{nearest(format, FORMATS)}')
    if space not in SPACES:
        raise UserError(f'"{space}" is no space of prompts{nearest(space, SPACES)}')
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    prompt_PD = _checked(_read_tensor(path), path)
    if prompt_PD.shape[1] != backbone.d_model:
        raise UserError(
            f"{path} is {prompt_PD.shape[1]} wide, the backbone {backbone.name} is {backbone.d_model}"
        )
    info = PromptInfo(
        format=format,
        backbone=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        tokenizer_fingerprint=None,
        embedding_rms=backbone.embedding_rms,
        licence=licence,
    )
    save_prompt(out, prompt_PD * SPACES[space], info)


def _read_tensor(path: Path) -> torch.Tensor:
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix in (".pt", ".bin"):
            value: Any = torch.load(path, map_location="cpu", weights_only=True)
        elif path.suffix == ".safetensors":
            value = load(path.read_bytes())
        else:
            raise UserError(f"{path}: expected a .npy, .pt, .bin or .safetensors file")
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as a tensor: {reason}") from error
    if isinstance(value, dict):
        if len(value) != 1:
            raise UserError(f"{path} holds {len(value)} tensors, expected one")
        value = next(iter(value.values()))
    if not isinstance(value, torch.Tensor):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a tensor")
    return value.detach()
