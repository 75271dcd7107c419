"""The whole build: raw text to a sentence store and the task corpora of every format.

A build can be killed at any moment: the same command goes on from the last finished part and ends with the same
bytes, for any number of workers, shards and machines.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from corpora.build_folder import alone, check_same, forget, remove
from corpora.build_settings import BuildSettings, LabelSettings
from corpora.common.errors import UserError
from corpora.common.files import (
    PARTIAL,
    atomic_folder,
    machine_errors,
    read_manifest,
    write_manifest,
)
from corpora.common.processes import Pool, worker_pool
from corpora.common.progress import say
from corpora.documents import not_strict
from corpora.formats import FORMATS
from corpora.labeller import Labeller, check_tokenizer, load_labeller
from corpora.labelling import keep_rule
from corpora.make_corpora import make_corpora
from corpora.merge import NoText, add_up, find_parts, finish_shard, make_store, shard_folder
from corpora.part_maker import PartMaker, part_fields
from corpora.parts import make_parts
from corpora.quality import Cleaner, QualitySettings, make_cleaner
from corpora.sources import HUB, Source, find_sources
from corpora.store import SentenceStore
from corpora.tokenizer import Tokenizer

WORKERS_IMPORT = ("corpora.part_maker", "corpora.draws", "pyarrow.compute", "sentencepiece")
# Settings that change no byte of a build, and those that stand in its manifest by content.
NO_IDENTITY = (
    *("workers", "strict", "engine", "shard", "out"),
    *("text", "tokenizer", "formats", "labeller", "labeller_words"),
)


def build(settings: BuildSettings) -> Path:
    """Build everything that `settings` ask for, or what is missing of it; or one shard of it.

    Returns:
        The build's folder: `store/`, `tokenizer/`, `<format>/`, and `labeller/` where one was given; of a shard,
        `shards/i`.

    Raises:
        UserError: wrong input; or the folder holds a build of other settings, naming both sides.
        MachineError: the disk is full, a place cannot be written, a worker died.
    """
    sources = find_sources(settings.text)
    out = Path(settings.out)
    with _pool(settings) as pool:  # its workers start while this process loads what it needs
        tokenizer = Tokenizer.load(settings.tokenizer)
        labeller = _labeller(settings, tokenizer)
        formats = _formats(settings, labeller)
        fields = _identity(settings, sources, tokenizer, labeller, formats, make_cleaner(settings))
        check_same(out, fields)
        with machine_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        if settings.shard is not None:
            with alone(out, wait=True):
                _prepare(out, fields, tokenizer, labeller)
            if (out / "store").exists():
                say(f"{out} is merged already; there is nothing left for a shard to do")
                return out
            return _shard(settings, sources, settings.shard, out, pool)
        with alone(out):
            try:
                _prepare(out, fields, tokenizer, labeller)
                if not (out / "store").exists():
                    if _sharded(out):
                        raise UserError(f"{out} holds shards; finish them and run ppt corpora merge {out}")
                    _shard(settings, sources, (0, 1), out, pool)
                    _merge(out, tokenizer, fields, pool)
            except NoText:
                forget(out)  # nothing of it is worth keeping: the text has to change
                raise
            if settings.strict:
                _no_drops(sources, SentenceStore.open(out / "store").manifest)
            return _finish(out, labeller, settings, fields, pool)


def _labeller(settings: BuildSettings, tokenizer: Tokenizer) -> Labeller | None:
    """Load the labeller and refuse now, rather than after the pass, what it cannot do."""
    if settings.labeller is None:
        return None
    labeller = load_labeller(settings.labeller, settings.labeller_words)
    keep_rule(labeller, settings.keep, settings.thresholds)
    check_tokenizer(labeller, tokenizer.name, tokenizer.fingerprint)
    if labeller.reads == "text" and not settings.keep_text:
        raise UserError(
            "keep_text: false leaves the labeller nothing to read; keep the text, or train one with --tokenizer"
        )
    return labeller


def _pool(settings: BuildSettings) -> contextlib.AbstractContextManager[Pool]:
    """Who does the work."""
    if settings.engine == "ray":
        from corpora.common.ray_pool import ray_pool

        return ray_pool(settings.workers)
    return worker_pool(settings.workers, WORKERS_IMPORT)


def merge(
    folder: str | Path,
    how: LabelSettings | None = None,
    labeller: str | None = None,
    strict: bool = False,
) -> Path:
    """Put the shards of a build together: the store, then the task corpora.

    Args:
        folder: the build's folder, with every shard in it.
        how: workers, and the words of a classifier; what becomes of labels was said when the build began.
        labeller: where the labeller is, if it is a classifier by name; a linear one lies in the build.
        strict: whether a record that the shards left out is an error.

    Returns:
        The build's folder.

    Raises:
        UserError: the folder holds no build, a shard is missing or not finished, or the labeller is another.
        MachineError: as `build`.
    """
    out = Path(folder)
    fields = read_manifest(out, "build")
    how = how or LabelSettings()
    how = how.model_copy(update={key: fields[key] for key in ("keep", "thresholds", "balance")})
    given = _merged_labeller(out, fields, labeller, how)
    with alone(out), worker_pool(how.workers, WORKERS_IMPORT) as pool:
        if not (out / "store").exists():
            _merge(out, Tokenizer.load(out / "tokenizer"), fields, pool)
        if strict:
            places = SentenceStore.open(out / "store").manifest["dropped_places"]
            for reason, (place, *_) in places.items():
                raise not_strict(place, reason)
        return _finish(out, given, how, fields, pool)


def _merged_labeller(
    out: Path, fields: dict[str, Any], name: str | None, how: LabelSettings
) -> Labeller | None:
    """The labeller that a build in shards was begun with; None where its corpus is there, or needs none."""
    if fields["labeller"] is None or (out / "single_text").exists():
        return None
    if name is None and not fields["labeller"]["linear"]:
        raise UserError(f"{out} was begun with a classifier by name; give it again with --labeller")
    given = load_labeller(name or out / "labeller", how.labeller_words)
    if given.describe() != fields["labeller"]:
        raise UserError(
            f"{out} was begun with another labeller than {name or out / 'labeller'}; give that one"
        )
    return given


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
    cleaner: Cleaner | None,
) -> dict[str, Any]:
    """What decides the bytes of a build, without paths: text, downstream sets and labeller by content."""
    plain = settings.model_dump(exclude={*NO_IDENTITY, *QualitySettings.model_fields})
    if labeller is None:  # what they would say of labels says nothing
        plain |= {
            name: LabelSettings.model_fields[name].default for name in ("keep", "thresholds", "balance")
        }
    return {
        **plain,
        "quality": cleaner.identity() if cleaner is not None else None,
        "text": [source.identity() for source in sources],
        "tokenizer": {"name": Path(tokenizer.name).name, "fingerprint": tokenizer.fingerprint},
        "formats": formats,
        "labeller": labeller.describe() if labeller is not None else None,
    }


def _prepare(out: Path, fields: dict[str, Any], tokenizer: Tokenizer, labeller: Labeller | None) -> None:
    """Write what every shard and the merge need: the settings, the tokenizer, the labeller."""
    if not (out / "manifest.json").exists():
        write_manifest(out, "build", fields)
    for name, thing in (("tokenizer", tokenizer), ("labeller", labeller)):
        if thing is not None and not (out / name).exists():
            with atomic_folder(out / name) as folder:
                thing.save(folder)


def _sharded(out: Path) -> bool:
    """Whether the parts here are those of several shards."""
    folders = list((out / "shards").glob("[0-9]*"))
    return any(
        path.name != "0" or ((path / "manifest.json").exists() and read_manifest(path, "shard")["of"] > 1)
        for path in folders
    )


def _shard(
    settings: BuildSettings, sources: list[Source], shard: tuple[int, int], out: Path, pool: Pool
) -> Path:
    """Make the parts of one shard."""
    folder = shard_folder(out, shard[0])
    with machine_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if (folder / "manifest.json").exists() and read_manifest(folder, "shard")["of"] != shard[1]:
            raise UserError(
                f"{folder} is a shard of {read_manifest(folder, 'shard')['of']}, this command says {shard[1]}"
            )
        maker = PartMaker(
            tokenizer=str((out / "tokenizer").absolute()),
            unit=settings.unit,
            language=settings.language,
            keep_text=settings.keep_text,
            text_field=settings.text_field,
            part_bytes=settings.part_bytes,
            quality=_quality(settings),
            strict=settings.strict,
            shard=shard,
        )
        if settings.strict:
            _no_bad_parts(folder, sources)
        known = make_parts(sources, folder.absolute(), maker, pool)
        finish_shard(folder, shard, known)
    return folder


def _quality(settings: BuildSettings) -> str | None:
    """What is done to the documents, for workers; they read downstream sets by themselves."""
    if make_cleaner(settings) is None:
        return None
    asked = {name: getattr(settings, name) for name in QualitySettings.model_fields}
    asked["decontaminate"] = [
        given if given.startswith(HUB) else str(Path(given).absolute()) for given in settings.decontaminate
    ]
    return QualitySettings(**asked).model_dump_json()


def _merge(out: Path, tokenizer: Tokenizer, fields: dict[str, Any], pool: Pool) -> None:
    """Join the parts of all shards to the store."""
    sources = fields["text"]
    parts = find_parts(out, len(sources))
    totals = add_up(parts, sources)
    for line in totals.read.lines():
        say(line)
    for line in totals.clean.report() if totals.clean is not None else []:
        say(line)
    if not totals.documents:
        names = ", ".join(source["name"] for source in sources)
        dropped = totals.clean.dropped if totals.clean is not None else {}
        reasons = [
            *totals.read.lines(),
            *(f"{n} documents dropped: {reason}" for reason, n in sorted(dropped.items())),
        ]
        raise NoText(f"no text in {names}: {'; '.join(reasons) or 'every document is empty'}")
    make_store(out, parts, totals, tokenizer, fields, pool)


def _finish(
    out: Path, labeller: Labeller | None, how: LabelSettings, fields: dict[str, Any], pool: Pool
) -> Path:
    """Draw what is missing of the formats; the parts are gone then."""
    remove(out / "shards")
    store = SentenceStore.open(out / "store")
    manifest = store.manifest
    say(
        f"store: {store.n_docs:,} documents, {store.n_units:,} {manifest['unit']}, {manifest['tokens']:,} tokens; "
        f"dropped: {', '.join(f'{n} {reason}' for reason, n in manifest['dropped'].items()) or 'nothing'}"
    )
    missing = [name for name in fields["formats"] if not (out / name).exists()]
    if missing or not (out / "README.md").exists():
        make_corpora(out, missing, how, labeller, pool)
    else:
        say(f"{out} was finished already")
    for left in out.glob(f"*{PARTIAL}"):
        remove(left)
    return out


def _no_bad_parts(folder: Path, sources: list[Source]) -> None:
    """What `strict` says of parts that were made without it."""
    for path in sorted(folder.glob("*.safetensors")):
        for reason in part_fields(path)["places"]:
            number, part = map(int, path.stem.split("-"))
            raise not_strict(f"{sources[number].name}, part {part}", reason)


def _no_drops(sources: list[Source], manifest: dict[str, Any]) -> None:
    """What `strict` says of a finished store that left bad records out."""
    if manifest["dropped_places"]:
        raise not_strict(*_first_dropped(sources, manifest["dropped_places"]))


def _first_dropped(sources: list[Source], places: dict[str, list[str]]) -> tuple[str, str]:
    """The first bad record that a store's manifest remembers: its place, by the path given now, and its fault.

    The manifest has names without folders; where two sources share one, it stays a name.
    """
    paths: dict[str, list[str]] = {}  # in the order of reading
    for source in sources:
        paths.setdefault(source.short, []).append(source.name)
    found = []
    for reason, (first, *_) in places.items():
        name, unit, number = first.rsplit(" ", 2)
        found.append((list(paths).index(name), int(number), unit, reason))
    index, line, unit, reason = min(found)
    name, among = list(paths.items())[index]
    return f"{among[0] if len(among) == 1 else name} {unit} {line}", reason
