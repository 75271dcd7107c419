"""From a store to task corpora: draw the formats of a build, label its units, make its data card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.build_folder import alone, remove
from corpora.build_settings import LabelSettings
from corpora.card import write_card
from corpora.common.errors import UserError
from corpora.common.files import atomic_folder, library_versions, manifest_hash, read_manifest
from corpora.common.processes import Pool, worker_pool
from corpora.common.progress import say
from corpora.draw_formats import draw_formats
from corpora.drawn import Summary
from corpora.draws import draw
from corpora.labeller import Labeller, check_tokenizer, load_labeller
from corpora.labelling import keep_rule, label_units
from corpora.merge import LIBRARIES
from corpora.store import SentenceStore
from corpora.task_corpus_writer import write_task_corpus

MANY_UNKNOWN = 0.02  # share of <unk> that is worth a warning; T5's vocabulary has 42 % on Chinese


def make_corpora(
    out: Path, formats: Sequence[str], how: LabelSettings, labeller: Labeller | None, pool: Pool
) -> None:
    """Draw formats of a build from its store.

    Args:
        out: the build's folder, with its store.
        formats: which; `single_text` needs a labeller.
        how: how labels become examples.
        labeller: gives units their labels.
        pool: does the work.
    """
    there = read_manifest(out, "build")
    store = SentenceStore.open(out / "store")
    warn(store, labeller)
    seed, validation = there["seed"], there["validation"]
    unlabelled = [name for name in formats if name != "single_text"]
    fields = _corpus_fields(out, store, seed, validation)
    for name, summary in draw_formats(out.absolute(), unlabelled, seed, validation, fields, pool):
        _say(name, summary)
    if labeller is not None and "single_text" in formats:
        _draw(out, store, how, seed, validation, labeller, pool)
    for left in out.glob("labels-*"):
        remove(left)
    write_card(out)


def apply_labeller(folder: str | Path, labeller: str | Path, how: LabelSettings | None = None) -> Path:
    """Label the units of a build and draw its `single_text` corpus, in place of one that is there.

    Args:
        folder: a build; one that keeps its text, unless the labeller reads token ids.
        labeller: folder of a labeller, or a sequence classifier by name.
        how: words of a classifier, share kept or thresholds, balance, workers.

    Returns:
        The folder of the corpus.

    Raises:
        UserError: the folder holds no build, or one without the text or the token ids that the labeller reads.
    """
    out = Path(folder)
    read_manifest(out, "build")
    store = SentenceStore.open(out / "store")
    how = how or LabelSettings()
    given = load_labeller(labeller, how.labeller_words)
    if given.reads == "text" and not store.keeps_text:
        raise UserError(f"{out} was built without text (keep_text: false); build it again with text")
    keep_rule(given, how.keep, how.thresholds)
    tokenizer = store.manifest["tokenizer"]
    check_tokenizer(given, tokenizer["name"], tokenizer["fingerprint"])
    with alone(out), worker_pool(how.workers) as pool:
        with atomic_folder(out / "labeller", replace=True) as partial:
            given.save(partial)
        make_corpora(out, ["single_text"], how, given, pool)
    return out / "single_text"


def warn(store: SentenceStore, labeller: Labeller | None) -> None:
    """Say what is allowed but hardly meant."""
    unknown = store.manifest["unknown_tokens"] / store.manifest["tokens"]
    if unknown > MANY_UNKNOWN:
        say(f"warning: {unknown:.0%} of the tokens are <unk>; this tokenizer was made for other text")
    if labeller is not None and labeller.language not in (None, store.manifest["language"]):
        say(
            f"warning: the labeller was trained on {labeller.language}, the text is {store.manifest['language']}"
        )


def _corpus_fields(out: Path, store: SentenceStore, seed: int, validation: float) -> dict[str, Any]:
    """What the manifest of every format says."""
    return {
        "store": manifest_hash(out / "store"),
        "tokenizer_fingerprint": store.manifest["tokenizer"]["fingerprint"],
        "seed": seed,
        "validation": validation,
        "language": store.manifest["language"],
        "versions": library_versions(*LIBRARIES),
    }


def _say(name: str, summary: Summary) -> None:
    for line in summary.lines():
        say(f"{name}: {line}")
    if not summary.train + summary.held_out:
        say(f"warning: {name} has no examples; its documents need more units, or give more text")


def _draw(
    out: Path,
    store: SentenceStore,
    how: LabelSettings,
    seed: int,
    validation: float,
    labeller: Labeller,
    pool: Pool,
) -> None:
    """Label the units of the store, draw `single_text` from them and write its folder."""
    name = "single_text"
    rule = keep_rule(labeller, how.keep, how.thresholds)
    # A command that is given again goes on from the ranges that are finished, if the labeller is the same.
    work = out / f"labels-{labeller.fingerprint[:16]}"
    for left in out.glob("labels-*"):
        if left != work:
            remove(left)
    labels, probabilities = label_units(store, labeller, out / "labeller", work, pool)
    counts = np.bincount(labels, minlength=len(labeller.words))
    found = ", ".join(f"{word} {n:,}" for word, n in zip(labeller.words, counts.tolist(), strict=True))
    say(f"{name}: the labeller calls {found}")
    drawn = draw(
        name,
        store,
        seed,
        validation=validation,
        labels=labels,
        probs=probabilities,
        n_classes=len(labeller.words),
        thresholds=rule.thresholds,
        keep=rule.keep,
        balance=how.balance,
    )
    fields = _corpus_fields(out, store, seed, validation) | {
        "label_words": list(labeller.words),
        "labeller": labeller.describe(),
        "keep": rule.keep if rule.thresholds is None else None,
        "thresholds": rule.thresholds,
        "balance": how.balance,
    }
    with atomic_folder(out / name, replace=True) as folder:
        write_task_corpus(folder, name, drawn, fields)
    _say(name, drawn.summary)
