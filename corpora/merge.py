"""Parts to a store: what needs the whole corpus happens here, once every shard is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora.common.errors import UserError
from corpora.common.files import atomic_folder, library_versions, read_json, read_manifest, write_manifest
from corpora.documents import Counts
from corpora.parts import part_path
from corpora.sources import record_unit
from corpora.store_writer import join_parts, store_manifest
from corpora.tokenizer import Tokenizer

LIBRARIES = ("blingfire", "numpy", "orjson", "pyarrow", "sentencepiece", "zstandard")


def shard_folder(out: Path, shard: int) -> Path:
    """Where the parts of a shard lie until they are merged."""
    return out / "shards" / f"{shard}"


def finish_shard(folder: Path, shard: tuple[int, int], known: dict[int, int]) -> None:
    """Say that every part of a shard is made.

    Args:
        folder: of the shard.
        shard: its number, and of how many.
        known: how many parts each source has, as far as this shard knows.
    """
    lengths = {str(number): parts for number, parts in sorted(known.items())}
    write_manifest(folder, "shard", {"shard": shard[0], "of": shard[1], "parts": lengths})


def find_parts(out: Path, n_sources: int) -> list[list[Path]]:
    """The parts of each source, in order, from all shards.

    Raises:
        UserError: a shard is missing or not finished, saying which.
    """
    folders = sorted(
        (path for path in (out / "shards").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )
    manifests = [
        read_manifest(path, "shard") if (path / "manifest.json").exists() else None for path in folders
    ]
    counts = {manifest["of"] for manifest in manifests if manifest is not None}
    if len(counts) > 1:
        raise UserError(
            f"{out} holds shards of {' and of '.join(map(str, sorted(counts)))}; remove {out}/shards and build them again"
        )
    count = counts.pop() if counts else len(folders)
    there = {manifest["shard"] for manifest in manifests if manifest is not None}
    missing = sorted(set(range(count)) - there)
    if missing or not there:
        raise UserError(
            f"{out}: shard {', '.join(map(str, missing)) or 0} of {count} is not finished; run its ppt corpora build --shard again"
        )
    lengths: dict[int, int] = {}
    for manifest in manifests:
        assert manifest is not None
        lengths |= {int(number): parts for number, parts in manifest["parts"].items()}
    found: list[list[Path]] = []
    for number in range(n_sources):
        paths = []
        for part in range(lengths.get(number, 0)):
            at = [path for folder in folders if (path := part_path(folder, number, part)).exists()]
            if not at:
                raise UserError(
                    f"{out}: part {part} of source {number} is missing; run ppt corpora build again"
                )
            paths.append(at[0])
        found.append(paths)
    return found


@dataclass
class Totals:
    """Sums over parts.

    Attributes:
        counts: documents, units, tokens, ...
        read: dropped records by reason, with their places.
        dropped: dropped units and documents by reason.
        lines_before: of each part, lines of its source that stand before it.
    """

    counts: dict[str, int] = field(default_factory=dict)
    read: Counts = field(default_factory=Counts)
    dropped: dict[str, int] = field(default_factory=dict)
    lines_before: list[int] = field(default_factory=list)


def add_up(parts: Sequence[Sequence[Path]], sources: Sequence[dict[str, Any]]) -> Totals:
    """Sum up what the parts say of themselves.

    Args:
        parts: of each source.
        sources: identity of each.
    """
    totals = Totals()
    for paths, source in zip(parts, sources, strict=True):
        unit = record_unit(source["name"])
        lines = 0
        for path in paths:
            part = read_json(path / "part.json")
            before = lines if part["first"] is None else part["first"] - 1
            totals.lines_before.append(before)
            lines += part["lines"]
            for name, value in part["counts"].items():
                totals.counts[name] = totals.counts.get(name, 0) + value
            for reason, count in part["dropped"].items():
                places = part["places"].get(reason)
                if places is None:
                    totals.dropped[reason] = totals.dropped.get(reason, 0) + count
                    continue
                for line in places:
                    totals.read.drop(reason, f"{source['name']} {unit} {before + line}")
                totals.read.dropped[reason] += count - len(places)
    return totals


def make_store(
    folder: Path,
    parts: Sequence[Sequence[Path]],
    totals: Totals,
    tokenizer: Tokenizer,
    fields: dict[str, Any],
) -> None:
    """Join parts to a store.

    Args:
        folder: of the store; appears when it is whole.
        parts: of each source.
        totals: their sums.
        tokenizer: whose ids they hold.
        fields: the build's manifest.
    """
    counts = totals.counts
    manifest = store_manifest(
        tokenizer,
        counts,
        fields["keep_text"],
        unit=fields["unit"],
        # Each document is cut by its own language; patterns and label words follow most of them.
        language="zh" if counts["chinese_documents"] * 2 > counts["documents"] else "en",
        sources=fields["text"],
        dropped={**totals.read.dropped, **totals.dropped},
        dropped_places=totals.read.places,
        versions=library_versions(*LIBRARIES),
    )
    manifest["tokenizer"]["name"] = fields["tokenizer"][
        "name"
    ]  # of where it came from, not of the build's copy
    with atomic_folder(folder) as partial:
        join_parts(
            [path for paths in parts for path in paths], partial, fields["keep_text"], totals.lines_before
        )
        write_manifest(partial, "store", manifest)
