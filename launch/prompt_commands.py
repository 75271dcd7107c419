"""What `ppt prompts` does: describe, export and import prompts on disk."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpora.common.errors import UserError, nearest
from corpora.common.files import write_bytes_atomic
from corpora.common.progress import say
from corpora.formats import FORMATS
from pretrain.artifact import check_backbone, export_peft, import_prompt, load_prompt, prompt_fingerprint

NEAREST = 8  # vocabulary words shown for a prompt


def describe_prompt(folder: str | Path, backbone: str | None) -> tuple[dict[str, Any], str]:
    """Describe a prompt.

    Args:
        folder: the prompt's folder.
        backbone: the backbone to take the nearest words from, or None to leave them out.

    Returns:
        The description as a mapping for programs, and as text for people.
    """
    prompt_PD, info = load_prompt(folder)
    value = {
        **dataclasses.asdict(info),
        "fingerprint": prompt_fingerprint(prompt_PD),
        "prompt_len": prompt_PD.shape[0],
        "d_model": prompt_PD.shape[1],
        "rms": float(prompt_PD.double().square().mean().sqrt()),
    }
    if backbone is not None:
        from finetune.report_words import nearest_words
        from pretrain.backbone import load_backbone

        loaded = load_backbone(backbone)
        check_backbone(info, loaded)
        embeddings_VD = loaded.model.get_input_embeddings().weight.detach()
        value["nearest_words"] = nearest_words(prompt_PD, embeddings_VD, loaded.tokenizer(), NEAREST)
    width = max(len(key) for key in value)
    shown = {key: (_shown_task(item) if key == "task" and item else item) for key, item in value.items()}
    return value, "\n".join(f"{key:<{width}}  {item}" for key, item in shown.items())


def _shown_task(task: dict[str, Any]) -> str:
    return f"{task.get('name')} version {task.get('version')}"


def export_prompt(folder: str | Path, to: str, out: str | Path) -> None:
    """Write a prompt for another library.

    Args:
        folder: the prompt's folder.
        to: `peft` (a folder that PEFT loads), `npy` or `pt` (one bare [P, D] float32 array or tensor).
        out: the folder or file to write.

    Raises:
        UserError: an unknown kind, or a folder without a prompt.
    """
    if to == "peft":
        export_peft(Path(folder), Path(out))
    elif to in ("npy", "pt"):
        prompt_PD, _ = load_prompt(folder)
        buffer = io.BytesIO()
        if to == "npy":
            np.save(buffer, prompt_PD.numpy(), allow_pickle=False)
        else:
            torch.save(prompt_PD, buffer)
        write_bytes_atomic(out, buffer.getvalue())
    else:
        raise UserError(f'"{to}" is no kind of export{nearest(to, ("peft", "npy", "pt"))}')
    say(f"{folder} written to {out}")


def import_prompt_file(
    file: Path, backbone: str, format: str, out: Path, space: str, licence: str | None
) -> None:
    """Bring in a prompt that another library trained; see `pretrain.artifact.import_prompt`.

    Raises:
        UserError: an unknown format or space, a file that holds no [P, D] tensor, or a width that is not the backbone's.
    """
    from pretrain.backbone import load_backbone

    if format not in FORMATS:
        raise UserError(f'"{format}" is no format{nearest(format, FORMATS)}')
    import_prompt(file, out, backbone=load_backbone(backbone), format=format, space=space, licence=licence)
    say(f"{file} written to {out}")
