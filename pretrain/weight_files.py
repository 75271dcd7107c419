"""The files that hold a model's weights, opened one at a time, each tensor read when it is asked for."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weight_files(name_or_path: str, offline: bool = True) -> list[Path]:
    """The files that hold a model's weights, in the order in which transformers looks for them.

    Args:
        name_or_path: a folder or a hub name.
        offline: take a hub's files from the local cache only; else they are fetched where they are missing.
    """
    for name in WEIGHTS:
        path = _find(name_or_path, name, offline)
        if path is None:
            continue
        if path.suffix != ".json":
            return [path]
        parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        found = [_find(name_or_path, part, offline) for part in parts]
        return [part for part in found if part is not None]
    return []


def _find(name_or_path: str, name: str, offline: bool) -> Path | None:
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / name
        return path if path.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        name_or_path,
        name,
        local_files_only=offline,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found is not None else None


def open_weights(path: Path) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Names and readers of a file's tensors.

    Files are memory-mapped: a tensor that is read costs no memory of its own until it is changed, and the pages that
    were touched go when the last of the file's tensors does. The oldest `.bin` files, which are no zip archives, cannot
    be mapped and are read whole.
    """
    if path.suffix == ".safetensors":
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            yield name, lambda name=name: file.get_tensor(name)  # type: ignore[misc]
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        for name in list(tensors):
            yield name, lambda name=name: tensors[name]  # type: ignore[misc]
