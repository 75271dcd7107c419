"""What tells one backbone from another: a SHA-256 that takes seconds at 11B."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from pretrain.weight_files import open_weights, weight_files

RUNS, RUN = 16, 64  # of each tensor: 16 runs of 64 values, evenly spread; few pages of a file to read
TABLE = "shared.weight"
ALIASES = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)  # of the table, if equal


def tensors_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, as hex, over names, shapes, dtypes and a fixed sample of each tensor's bytes.

    The embedding table counts once, under `shared.weight`: which of its aliases a file holds depends on who wrote it.

    Args:
        tensors: a T5-shaped model's weights by name.
    """
    return _fingerprint({name: _described(tensor) for name, tensor in tensors.items()})


def weight_files_fingerprint(name_or_path: str, wanted: set[str]) -> str | None:
    """The same of a model's files: it does not change with the dtype that the model is loaded in.

    Args:
        name_or_path: the folder or hub name that it was loaded from.
        wanted: names of the loaded model's tensors; a file's others are left out, as loading leaves them out.

    Returns:
        None where the files name their tensors in another way than the model does.
    """
    described: dict[str, bytes] = {}
    for path in weight_files(name_or_path):  # one file at a time: the old kind is read whole
        described.update((name, _described(read())) for name, read in open_weights(path) if name in wanted)
    if TABLE not in described:
        for alias in ALIASES[:2]:
            if alias in described:
                described[TABLE] = described[alias]
    return _fingerprint(described) if wanted - set(described) <= set(ALIASES) else None


def _fingerprint(described: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    table = described.get(TABLE)
    for name in sorted(described):
        if name not in ALIASES or described[name] != table:
            digest.update(f"{name} ".encode() + described[name])
    return digest.hexdigest()


def _described(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if len(flat) > RUNS * RUN:
        last = len(flat) - RUN
        starts = [last * run // (RUNS - 1) for run in range(RUNS)]
        flat = torch.cat([flat[start : start + RUN] for start in starts])
    sample = flat.contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype}\n".encode() + sample
