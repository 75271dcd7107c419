"""What tells one backbone from another: a SHA-256 that takes seconds at 11B."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

RUNS, RUN = 16, 64  # of each tensor: 16 runs of 64 values, evenly spread; few pages of a file to read
TABLE = "shared.weight"
ALIASES = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)  # of the table, if equal
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
Opened = Mapping[str, Callable[[], torch.Tensor]]


def tensors_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, as hex, over names, shapes, dtypes and a fixed sample of each tensor's bytes.

    The embedding table counts once, under `shared.weight`: which of its aliases a file holds depends on who wrote it.

    Args:
        tensors: a T5-shaped model's weights by name.
    """
    return _fingerprint({name: lambda tensor=tensor: tensor for name, tensor in tensors.items()})  # type: ignore[misc]


def weight_files_fingerprint(name_or_path: str, wanted: set[str]) -> str | None:
    """The same of a model's files: it does not change with the dtype that the model is loaded in.

    Args:
        name_or_path: the folder or hub name that it was loaded from.
        wanted: names of the loaded model's tensors; a file's others are left out, as loading leaves them out.

    Returns:
        None where the files name their tensors in another way than the model does.
    """
    opened: dict[str, Callable[[], torch.Tensor]] = {}
    for path in _weight_files(name_or_path):
        opened.update((name, get) for name, get in _open(path) if name in wanted)
    if TABLE not in opened:
        for alias in ALIASES[:2]:
            if alias in opened:
                opened[TABLE] = opened[alias]
    return _fingerprint(opened) if wanted - set(opened) <= set(ALIASES) else None


def _fingerprint(opened: Opened) -> str:
    digest = hashlib.sha256()
    table = _described(opened[TABLE]()) if TABLE in opened else None
    for name in sorted(opened):
        described = _described(opened[name]())
        if name not in ALIASES or described != table:
            digest.update(f"{name} ".encode() + described)
    return digest.hexdigest()


def _described(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if len(flat) > RUNS * RUN:
        last = len(flat) - RUN
        starts = [last * run // (RUNS - 1) for run in range(RUNS)]
        flat = torch.cat([flat[start : start + RUN] for start in starts])
    sample = flat.contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype}\n".encode() + sample


def _weight_files(name_or_path: str) -> list[Path]:
    """The files that hold a model's weights, in the order in which transformers looks for them."""
    for name in WEIGHTS:
        path = _find(name_or_path, name)
        if path is None:
            continue
        if path.suffix != ".json":
            return [path]
        parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        found = [_find(name_or_path, part) for part in parts]
        return [part for part in found if part is not None]
    return []


def _find(name_or_path: str, name: str) -> Path | None:
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / name
        return path if path.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        name_or_path,
        name,
        local_files_only=True,  # it has just been loaded
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found is not None else None


def _open(path: Path) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Names and readers of a file's tensors; both kinds of file are memory-mapped."""
    if path.suffix == ".safetensors":
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            yield name, lambda name=name: file.get_tensor(name)  # type: ignore[misc]
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for name, tensor in tensors.items():
            yield name, lambda tensor=tensor: tensor  # type: ignore[misc]
