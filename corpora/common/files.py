"""Files on disk: atomic writes, JSON that is the same bytes for the same content, manifests and hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from corpora.common.errors import MachineError, UserError

PARTIAL = ".partial"  # suffix of what is still being written; never read, overwritten by the next run
FORMAT_VERSION = 1  # of every manifest; goes up when a reader of today could not read what is written


_MACHINE_FAULTS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR,
}  # fmt: skip

# How libraries word it in errors that carry no number of the operating system.
_REFUSED = re.compile(
    r"no space|too large|disk quota|permission denied|read-only|input/output error|i/o error"
    r"|write failed|failed writing|unexpected pos|os error",
    re.IGNORECASE,
)


@contextlib.contextmanager
def machine_errors(path: str | Path) -> Iterator[None]:
    """Turn what the operating system refuses (full disk, no permission) into one line that names the path.

    Libraries that write say it in their own ways: numpy with an OSError without a number, safetensors with its own
    error, torch with a RuntimeError.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.errno not in _MACHINE_FAULTS:
            raise
        reason = error.strerror or str(error)
        raise MachineError(_refused(path, reason)) from error
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not _REFUSED.search(reason):
            raise
        raise MachineError(_refused(path, reason)) from error


def _refused(path: str | Path, reason: str) -> str:
    return f"cannot write {path}: {reason.lower()}; nothing half-written is left there"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or what it held before.

    Raises:
        MachineError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    with machine_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def write_text_atomic(path: str | Path, text: str) -> None:
    """`write_bytes_atomic` for UTF-8 text."""
    write_bytes_atomic(path, text.encode("utf-8"))


def dump_json(value: Any) -> str:
    """JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as `dump_json` gives it, atomically."""
    write_text_atomic(path, dump_json(value))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON, naming the line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error


@contextlib.contextmanager
def atomic_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is whole.

    Args:
        path: the folder to make.
        replace: whether an existing folder of that name gives way.

    Yields:
        A temporary folder beside it; renamed to `path` when the block ends well, removed when it does not.

    Raises:
        UserError: `path` exists and `replace` is false.
        MachineError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UserError(f"{path} already exists; remove it or choose another folder")
    partial = path.with_name(path.name + PARTIAL)
    with machine_errors(path):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for file in sorted(partial.rglob("*")):
                if file.is_file():
                    descriptor = os.open(file, os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
            if path.exists():
                shutil.rmtree(path)
            os.replace(partial, path)
            _sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def hash_json(value: Any) -> str:
    """SHA-256 of `dump_json(value)`, as hex."""
    return hashlib.sha256(dump_json(value).encode("utf-8")).hexdigest()


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hex, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions."""
    return {name: importlib.metadata.version(name) for name in names}


def write_manifest(folder: str | Path, kind: str, fields: dict[str, Any]) -> None:
    """Write `manifest.json`: what this folder is and what it was made from.

    Args:
        folder: the folder it describes.
        kind: `store`, `task_corpus`, `labeller`, `backbone`, ...
        fields: everything else; neither times nor absolute paths, so that equal content gives equal bytes.
    """
    write_json(Path(folder) / "manifest.json", {"kind": kind, "format_version": FORMAT_VERSION, **fields})


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """Read a manifest and check its kind and version.

    Raises:
        UserError: it is missing, of another kind or of a version that this release cannot read.
    """
    path = Path(folder) / "manifest.json"
    if not path.exists():
        raise UserError(f"{folder} holds no {kind}: manifest.json is missing")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        found = manifest.get("kind") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(f"{folder} holds a {found}, expected a {kind}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {manifest.get('format_version')}, "
            f"this release reads {FORMAT_VERSION}; make it again"
        )
    return manifest


def manifest_hash(folder: str | Path) -> str:
    """SHA-256 of a folder's manifest: what later artefacts cite as their origin."""
    return hash_file(Path(folder) / "manifest.json")


def drop_partials(folder: str | Path) -> None:
    """Remove what processes that are gone left half-written below a folder."""
    for partial in list(Path(folder).rglob(f"*{PARTIAL}")):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
