"""The whole build: raw text to a sentence store and the task corpora of every format.

A build can be killed at any moment: the same command goes on from the last finished part and ends with the same
bytes, for any number of workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from corpora.common.errors import MachineError, UserError, nearest
from corpora.common.files import (
    PARTIAL,
    atomic_folder,
    library_versions,
    machine_errors,
    manifest_hash,
    read_manifest,
    write_manifest,
)
from corpora.common.progress import say
from corpora.common.settings import Settings
from corpora.documents import Counts, Source, find_sources, not_strict, read_documents
from corpora.draws import draw
from corpora.formats import FORMATS
from corpora.labeller import Labeller
from corpora.labelling import label_units
from corpora.parts import PartMaker, make_parts, part_counts
from corpora.segment import Language, Unit
from corpora.store import SentenceStore, join_parts, store_manifest
from corpora.task_corpus_writer import write_task_corpus
from corpora.tokenizer import Tokenizer

MANY_UNKNOWN = 0.02  # share of <unk> that is worth a warning; T5's vocabulary has 42 % on Chinese
LIBRARIES = ("blingfire", "numpy", "pyarrow", "sentencepiece", "zstandard")


class LabelSettings(Settings):
    """How labels become the `single_text` corpus."""

    labeller_words: list[str] | None = None  # label words of a sequence classifier, in its order
    keep: float = Field(default=0.2, gt=0, le=1)  # of each class, the surest that a linear labeller keeps
    balance: bool = True  # down to the rarest class
    workers: int = Field(default=1, ge=1)  # processes; the result is the same for any number


class BuildSettings(LabelSettings):
    """What a build is made of."""

    text: list[str]  # files, folders, patterns, hub:namespace/name[:config][:split]
    tokenizer: str  # folder, *.model file or hub name
    out: str  # folder of the build
    formats: list[str] | None = None  # None: all, single_text only with a labeller
    labeller: str | None = None  # folder of a labeller, or a sequence classifier by name
    unit: Unit = "paragraphs"
    language: Language = "auto"
    text_field: str = "text"  # of JSONL, CSV, Parquet and hub records
    validation: float = Field(default=0.05, gt=0, lt=1)  # share of documents held out
    seed: int = 0
    keep_text: bool = True  # beside the token ids
    strict: bool = False  # a bad record ends the build, also one that a finished store left out
    part_chars: int = Field(default=4_000_000, ge=1)  # characters of text in a part, the unit of resuming

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: list[str] | None) -> list[str] | None:
        for name in formats or []:
            if name not in FORMATS:
                raise ValueError(f'unknown format "{name}"{nearest(name, FORMATS)}')
        return formats


def build(settings: BuildSettings) -> Path:
    """Build everything that `settings` ask for, or what is missing of it.

    Returns:
        The build's folder: `store/`, `tokenizer/`, `<format>/`, and `labeller/` where one was given.

    Raises:
        UserError: wrong input; or the folder holds a build of other settings, naming both sides.
        MachineError: the disk is full, a place cannot be written, a worker died.
    """
    sources = find_sources(settings.text)
    tokenizer = Tokenizer.load(settings.tokenizer)
    labeller = Labeller.load(settings.labeller, settings.labeller_words) if settings.labeller else None
    formats = _formats(settings, labeller)
    if labeller is not None and not settings.keep_text:
        raise UserError(
            "keep_text: false leaves the labeller nothing to read; keep the text, or give no labeller"
        )
    out = Path(settings.out)
    fields = _identity(settings, sources, tokenizer, labeller, formats)
    _check_same(out, fields)
    with machine_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        write_manifest(out, "build", fields)
        try:
            store = _store(settings, sources, tokenizer, out)
        except UserError:
            if not (out / "store").exists():  # nothing of it is worth keeping: the text has to change
                for path in ("manifest.json", "tokenizer", "parts"):
                    _remove(out / path)
                with contextlib.suppress(OSError):
                    out.rmdir()
            raise
        _warn(store, labeller)
        if labeller is not None and not (out / "labeller").exists():
            with atomic_folder(out / "labeller") as folder:
                labeller.save(folder)
        missing = [name for name in formats if not (out / name).exists()]
        for name in missing:
            _draw(out, store, name, settings, settings.seed, settings.validation, labeller)
        if not missing:
            say(f"{out} was finished already")
        _remove(out / "labels")
        for left in out.glob(f"*{PARTIAL}"):
            _remove(left)
    return out


def _formats(settings: BuildSettings, labeller: Labeller | None) -> list[str]:
    wanted = [name for name in FORMATS if settings.formats is None or name in settings.formats]
    if labeller is None and "single_text" in wanted:
        wanted.remove("single_text")
        say("single_text is left out: it needs a labeller (ppt corpora label train, then --labeller)")
        if not wanted:
            raise UserError(
                "nothing to build: single_text is the only format asked for, and no labeller is given"
            )
    return wanted


def _identity(
    settings: BuildSettings,
    sources: list[Source],
    tokenizer: Tokenizer,
    labeller: Labeller | None,
    formats: list[str],
) -> dict[str, Any]:
    """What decides the bytes of a build, without paths: text and labeller by content."""
    plain = settings.model_dump(
        exclude={"text", "tokenizer", "out", "formats", "labeller", "labeller_words", "workers", "strict"}
    )
    return {
        **plain,
        "text": [source.identity() for source in sources],
        "tokenizer": {"name": Path(tokenizer.name).name, "fingerprint": tokenizer.fingerprint},
        "formats": formats,
        "labeller": labeller.describe() if labeller is not None else None,
    }


def _check_same(out: Path, fields: dict[str, Any]) -> None:
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
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder, so that two builds never write into it at once; the lock ends with the process."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError(
                f"{out}: another build is at work in this folder; wait for it or end it"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _store(settings: BuildSettings, sources: list[Source], tokenizer: Tokenizer, out: Path) -> SentenceStore:
    """Read, segment and tokenise the text; a finished store is only opened."""
    parts = out / "parts"
    if not (out / "store").exists():
        if not (out / "tokenizer").exists():
            with atomic_folder(out / "tokenizer") as folder:
                tokenizer.save(folder)
        with machine_errors(parts):
            parts.mkdir(exist_ok=True)
        read = Counts()
        documents = read_documents(sources, settings.strict, settings.text_field, read)
        maker = PartMaker(str(out / "tokenizer"), settings.unit, settings.language, settings.keep_text)
        paths = make_parts(documents, parts, maker, settings.part_chars, settings.workers)
        counts, dropped = part_counts(paths)
        for line in read.lines():
            say(line)
        if not counts.get("units"):
            reason = "; ".join(read.lines()) or "every document is empty"
            raise UserError(f"no text in {', '.join(settings.text)}: {reason}")
        fields = store_manifest(
            tokenizer,
            counts,
            settings.keep_text,
            unit=settings.unit,
            # Each document is cut by its own language; patterns and label words follow most of them.
            language="zh" if counts["chinese_documents"] * 2 > counts["documents"] else "en",
            sources=[source.identity() for source in sources],
            dropped={**read.dropped, **dropped},
            dropped_places=read.places,
            versions=library_versions(*LIBRARIES),
        )
        with atomic_folder(out / "store") as folder:
            join_parts(paths, folder, settings.keep_text)
            write_manifest(folder, "store", fields)
    _remove(parts)
    store = SentenceStore.open(out / "store")
    manifest = store.manifest
    if settings.strict and manifest["dropped_places"]:
        raise not_strict(*_first_dropped(sources, manifest["dropped_places"]))
    say(
        f"store: {store.n_docs:,} documents, {store.n_units:,} {manifest['unit']}, {manifest['tokens']:,} tokens; "
        f"dropped: {', '.join(f'{n} {reason}' for reason, n in manifest['dropped'].items()) or 'nothing'}"
    )
    return store


def _first_dropped(sources: list[Source], places: dict[str, list[str]]) -> tuple[str, str]:
    """The first bad record that a store's manifest remembers: its place, by the path given now, and its fault.

    The manifest has names without folders; where two sources share one, it stays a name.
    """
    paths: dict[str, list[str]] = {}  # in the order of reading
    for source in sources:
        paths.setdefault(Path(source.name).name, []).append(source.name)
    found = []
    for reason, (first, *_) in places.items():
        name, unit, number = first.rsplit(" ", 2)
        found.append((list(paths).index(name), int(number), unit, reason))
    index, line, unit, reason = min(found)
    name, among = list(paths.items())[index]
    return f"{among[0] if len(among) == 1 else name} {unit} {line}", reason


def _warn(store: SentenceStore, labeller: Labeller | None) -> None:
    """Say what is allowed but hardly meant."""
    unknown = store.manifest["unknown_tokens"] / store.manifest["tokens"]
    if unknown > MANY_UNKNOWN:
        say(f"warning: {unknown:.0%} of the tokens are <unk>; this tokenizer was made for other text")
    if labeller is not None and labeller.language not in (None, store.manifest["language"]):
        say(
            f"warning: the labeller was trained on {labeller.language}, the text is {store.manifest['language']}"
        )


def _draw(
    out: Path,
    store: SentenceStore,
    name: str,
    how: LabelSettings,
    seed: int,
    validation: float,
    labeller: Labeller | None,
) -> None:
    """Draw one format from the store and write its folder."""
    language = store.manifest["language"]
    fields: dict[str, Any] = {
        "store": manifest_hash(out / "store"),
        "tokenizer_fingerprint": store.manifest["tokenizer"]["fingerprint"],
        "seed": seed,
        "validation": validation,
        "language": language,
        "versions": library_versions(*LIBRARIES),
    }
    labelled: dict[str, Any] = {}
    if labeller is not None and name == "single_text":
        labels, probabilities = label_units(store, labeller, out / "labeller", out / "labels", how.workers)
        counts = np.bincount(labels, minlength=len(labeller.words))
        found = ", ".join(f"{word} {n:,}" for word, n in zip(labeller.words, counts.tolist(), strict=True))
        say(f"{name}: the labeller calls {found}")
        labelled = {
            "labels": labels,
            "probs": probabilities,
            "n_classes": len(labeller.words),
            "thresholds": labeller.thresholds,
            "keep": how.keep,
            "balance": how.balance,
        }
        fields |= {
            "label_words": list(labeller.words),
            "labeller": labeller.describe(),
            "keep": how.keep,
            "balance": how.balance,
        }
    drawn = draw(name, store, seed, validation=validation, **labelled)
    with atomic_folder(out / name, replace=True) as folder:
        write_task_corpus(folder, name, drawn, fields)
    for line in drawn.lines():
        say(f"{name}: {line}")
    if not len(drawn):
        say(f"warning: {name} has no examples; its documents need more units, or give more text")


def apply_labeller(folder: str | Path, labeller: str | Path, how: LabelSettings | None = None) -> Path:
    """Label the units of a build and draw its `single_text` corpus, in place of one that is there.

    Args:
        folder: a build that keeps its text.
        labeller: folder of a labeller, or a sequence classifier by name.
        how: words of a classifier, share kept, balance, workers.

    Returns:
        The folder of the corpus.

    Raises:
        UserError: the folder holds no build, or one without text.
    """
    out = Path(folder)
    there = read_manifest(out, "build")
    store = SentenceStore.open(out / "store")
    if not store.keeps_text:
        raise UserError(f"{out} was built without text (keep_text: false); build it again with text")
    how = how or LabelSettings()
    given = Labeller.load(labeller, how.labeller_words)
    _warn(store, given)
    with _alone(out):
        _remove(out / "labels")  # of another labeller, perhaps
        with atomic_folder(out / "labeller", replace=True) as partial:
            given.save(partial)
        _draw(out, store, "single_text", how, there["seed"], there["validation"], given)
        _remove(out / "labels")
    return out / "single_text"
