"""Where raw text lies: files, folders, patterns and hub data sets, listed in the order in which they are read."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import io
import lzma
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, cast

from corpora.common.errors import MachineError, UserError
from corpora.common.files import hash_file
from corpora.common.progress import say

COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
HUB = "hub:"
SUFFIXES = {
    ".txt": "txt",
    ".text": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One file or hub data set, in the order in which it is read."""

    name: str  # path, or `hub:...`
    reader: str  # a value of SUFFIXES, or `hub`
    compression: str = ""  # one of COMPRESSIONS, or none
    short: str = ""  # as manifests and messages about records have it: without what tells where it lies

    def __post_init__(self) -> None:
        if not self.short:
            object.__setattr__(self, "short", _short(self.name, self.reader))

    def elsewhere(self) -> Source:
        """The same for a process that stands in another folder."""
        return self if self.reader == "hub" else dataclasses.replace(self, name=os.path.abspath(self.name))

    @property
    def unit(self) -> str:
        """What a record's number counts."""
        return record_unit(self.name)

    @property
    def seekable(self) -> bool:
        """Whether a worker can read a range of its bytes without what stands before."""
        return self.reader in ("txt", "jsonl") and not self.compression

    def identity(self) -> dict[str, Any]:
        """Name without folder, size in bytes and SHA-256: what a manifest cites."""
        if self.reader == "hub":
            return {"name": self.short}
        path = Path(self.name)
        try:
            return {"name": self.short, "bytes": path.stat().st_size, "sha256": hash_file(path)}
        except OSError as error:
            raise _unreadable(self.name, error) from error


def find_sources(sources: Sequence[str | Path]) -> list[Source]:
    """List what is read: sources in the order given, the files of a folder or pattern sorted by name.

    Args:
        sources: files, folders (searched through), patterns such as `news/*.jsonl.gz`, or
            `hub:namespace/name[:config][:split]`.

    Raises:
        UserError: nothing is there, or a file's kind is unknown.
    """
    found: list[Source] = []
    for given in sources:
        name, path = str(given), Path(given)
        if name.startswith(HUB):
            found.append(Source(name, "hub"))
        elif path.is_file():
            source = _source(path)
            if source is None:
                raise UserError(f"{name}: unknown kind of file; expected a name ending in {_kinds()}")
            found.append(source)
        elif path.is_dir() or has_magic(name):
            files = sorted(_walk(path) if path.is_dir() else _matches(name))
            readable = [file for file in files if file.is_file() and not file.name.startswith(".")]
            kept = [source for file in readable if (source := _source(file)) is not None]
            if not kept:
                raise UserError(f"{name}: no text there; expected files ending in {_kinds()}")
            if len(kept) < len(files):
                left = [file.name for file in files if str(file) not in {source.name for source in kept}]
                more = ", ..." if len(left) > 3 else ""
                say(
                    f"{name}: {len(kept)} files of text are read, {len(left)} others are not ({', '.join(left[:3])}{more})"
                )
            found += kept
        else:
            raise UserError(f"{name} {_what(path)}")
    if not found:
        raise UserError("no text given; expected files, folders, patterns or hub:namespace/name")
    return [
        dataclasses.replace(source, short=short) for source, short in zip(found, _names(found), strict=True)
    ]


def _names(sources: Sequence[Source]) -> list[str]:
    """Names that do not depend on where the files lie: as short as tells them apart."""
    parts = [_parts(source) for source in sources]
    names = [part[-1] for part in parts]
    full = ["/".join(part) for part in parts] if len(set(names)) < len(names) else names
    often, seen = Counter(full), Counter[str]()
    told = []
    for name in full:
        seen[name] += 1
        told.append(f"{name} ({seen[name]})" if often[name] > 1 else name)
    return told


def _parts(source: Source) -> tuple[str, ...]:
    if source.reader == "hub":
        return (_short(source.name, source.reader),)
    return Path(source.name).resolve().parts[-2:]


def _short(name: str, reader: str) -> str:
    if reader == "hub":
        return HUB + "/".join(name.removeprefix(HUB).split("/")[-2:])
    return Path(name).name


def _walk(folder: Path) -> list[Path]:
    """The files of a folder and its folders; links to folders are not followed, as they may lead in a circle."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=_closed):
        linked = [name for name in folders if os.path.islink(os.path.join(root, name))]
        found += [Path(root) / name for name in (*names, *linked)]
    return found


def _closed(error: OSError) -> None:
    raise _unreadable(str(error.filename), error)


def _matches(pattern: str) -> list[Path]:
    """The files that a pattern names, each once: `**` follows links, and they may lead in a circle."""
    return list(
        {
            os.path.realpath(match): Path(match)
            for match in sorted(glob(pattern, recursive=True), reverse=True)
        }.values()
    )


def _what(path: Path) -> str:
    """Why a path that is neither a file nor a folder cannot be read."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link to nothing" if path.is_symlink() else "does not exist"
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a device" if stat.S_ISCHR(mode) else "no regular file"
    return f"is {kind}; a build reads its text more than once: write it to a file first"


class Damaged(UserError):
    """A source ends early or is not what its name says.

    Attributes:
        reason: how, without the source's name.
    """

    def __init__(self, source: Source, reason: str) -> None:
        super().__init__(f"{source.name}: {reason}; copy the file again")
        self.reason = reason


@contextlib.contextmanager
def reading(source: Source) -> Iterator[None]:
    """Say what is wrong with a source: `Damaged` for its data, a MachineError for what the system refuses."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(source, error) from error
    except OSError as error:
        if source.compression and error.errno is None:  # bz2 and Arrow say so of bad data
            raise _damaged(source, error) from error
        raise _unreadable(source.name, error) from error


def _kinds() -> str:
    return f"{', '.join(SUFFIXES)}, each alone or with {', '.join(COMPRESSIONS)}"


def _source(path: Path) -> Source | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    if not suffixes or suffixes[-1] not in SUFFIXES:
        return None
    return Source(str(path), SUFFIXES[suffixes[-1]], compression)


def record_unit(name: str) -> str:
    """What a record's number counts in a source of this name: rows of Parquet and of hub data sets, else lines."""
    return "row" if name.startswith(HUB) or ".parquet" in (s.lower() for s in Path(name).suffixes) else "line"


def _unreadable(name: str, error: OSError) -> MachineError:
    return MachineError(f"cannot read {name}: {(error.strerror or str(error)).lower()}")


def _damaged(source: Source, error: Exception) -> Damaged:
    return Damaged(source, f"damaged {source.compression[1:]} data ({str(error) or type(error).__name__})")


def open_source(source: Source) -> BinaryIO:
    """Open a file, unpacked as its name says."""
    path = source.name
    if source.compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if source.compression == ".xz":
        return cast(BinaryIO, _unpacked(path, lzma.LZMADecompressor))
    if source.compression == ".bz2":
        return cast(BinaryIO, _unpacked(path, bz2.BZ2Decompressor))
    if source.compression == ".zst":
        import pyarrow as pa

        # Unlike the reader of the package zstandard, Arrow's says when the file was cut short.
        return io.BufferedReader(pa.input_stream(path, compression="zstd"), 1 << 17)
    return open(path, "rb")


class _Unpacking(io.RawIOBase):
    """Unpacks streams that follow each other; unlike Python's own readers, no damaged one passes for the end."""

    def __init__(self, file: BinaryIO, make: Callable[[], Any]) -> None:
        self._file, self._make = file, make
        self._unpacker: Any = None
        self._rest = b""  # packed bytes behind a finished stream

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        while True:
            if self._unpacker is None:
                # Streams may be padded with zeros (the .xz format, section 2.2).
                while not self._rest.strip(b"\0"):
                    self._rest = self._file.read(1 << 16)
                    if not self._rest:
                        return 0
                self._rest = self._rest.lstrip(b"\0")
                self._unpacker = self._make()
            packed = b""
            if self._unpacker.needs_input:
                packed = self._rest or self._file.read(1 << 16)
                self._rest = b""
                if not packed:
                    raise EOFError("the file ends in the middle of a stream")
            data = self._unpacker.decompress(packed, len(buffer))
            if self._unpacker.eof:
                self._rest, self._unpacker = self._unpacker.unused_data, None
            if data:
                buffer[: len(data)] = data
                return len(data)

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()


def _unpacked(path: str, make: Callable[[], Any]) -> io.BufferedReader:
    return io.BufferedReader(_Unpacking(open(path, "rb"), make), 1 << 17)
