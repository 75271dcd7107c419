"""The folder of a build: whether it holds this one, who may write into it, what is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.common.errors import MachineError, UserError
from corpora.common.files import PARTIAL, read_manifest
from corpora.common.progress import say


def check_same(out: Path, fields: dict[str, Any]) -> None:
    """Refuse a folder that holds something else, or a build of other settings, naming both sides."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder for the build")
    if not (out / "manifest.json").exists():
        others = [path.name for path in out.iterdir() if not path.name.endswith(PARTIAL)]
        if others:
            raise UserError(f"{out} holds other files ({others[0]}) and no build; choose another folder")
        return
    there = read_manifest(out, "build")
    for key, value in fields.items():
        if there.get(key) != value:
            raise UserError(
                f"{out} was built with {key} {_short(there.get(key))}, this command says {_short(value)}; "
                "choose another folder, or remove that one"
            )


def _short(value: Any) -> str:
    """A setting as a message shows it: fingerprints cut to what people compare."""
    if isinstance(value, dict):
        shown = {k: v[:12] if k in ("fingerprint", "sha256") else v for k, v in value.items()}
        return "(" + ", ".join(f"{k} {v}" for k, v in shown.items()) + ")"
    if isinstance(value, list):
        return ", ".join(_short(item) for item in value)
    return f'"{value}"' if isinstance(value, str) else str(value)


@contextlib.contextmanager
def alone(out: Path, wait: bool = False) -> Iterator[None]:
    """Hold the folder, so that two builds never write into it at once; the lock ends with the process."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        if wait and not _free(descriptor):
            say(f"waiting for another command that prepares {out}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise MachineError(
                f"{out}: another build is at work in this folder; wait for it or end it"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def forget(out: Path) -> None:
    """Remove a build of which nothing is worth keeping."""
    for path in ("manifest.json", "tokenizer", "labeller", "shards"):
        remove(out / path)
    with contextlib.suppress(OSError):
        out.rmdir()
