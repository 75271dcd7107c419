"""What is done to a document before it is cut into units: repair, filters, decontamination, marks of duplicates.

All of it is off unless asked for, and all of it is counted. Each document is judged alone, so the result does not depend on
how documents are shared out; what needs the whole corpus (duplicates) is decided later, from the marks made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from corpora.boilerplate import REPETITION_RUNS, drop_lines, fault
from corpora.common.settings import Settings
from corpora.contamination import NGRAM, SHORTEST, Contamination, Downstream, Found
from corpora.duplicates import SHINGLE, Signatures, document_hash, signature
from corpora.language import LANGUAGES, language_of
from corpora.repair import repair
from corpora.words import MAX_NGRAM, Hashes, Words, find_all_words, find_ngrams

PLACES = 5  # of dropped documents, remembered for each reason; the count goes on
TOGETHER = 1 << 18  # characters of documents whose words are held at a time: up to 30 MB of arrays
CONTAMINATED = "holds a downstream text"


class QualitySettings(Settings):
    """What is done to the documents; by default nothing."""

    repair: bool = False  # mend broken encodings
    keep_languages: list[str] | None = None  # ISO 639-1 codes; None: all
    min_document_chars: int | None = Field(default=None, ge=1)  # characters, after repair and lines dropped
    max_document_chars: int | None = Field(default=None, ge=1)
    boilerplate: bool = False  # lines and documents that are no running text
    decontaminate: list[str] = Field(
        default_factory=list
    )  # downstream sets: files, folders, patterns, hub:NAME
    ngram: int = Field(default=NGRAM, ge=SHORTEST, le=MAX_NGRAM)  # words of a downstream text in a row
    duplicates: Literal["keep", "exact", "near"] = "keep"
    similarity: float = Field(
        default=0.8, gt=0, le=1
    )  # of near-duplicates: share of 5-word shingles in common

    @field_validator("keep_languages")
    @classmethod
    def _known_languages(cls, codes: list[str] | None) -> list[str] | None:
        if codes is not None and not codes:
            raise ValueError("no language is named; leave it out to keep all")
        for code in codes or []:
            if code not in LANGUAGES:
                raise ValueError(f'unknown language "{code}"; expected ISO 639-1 codes such as en, zh, de')
        return codes

    @model_validator(mode="after")
    def _lengths(self) -> QualitySettings:
        least, most = self.min_document_chars, self.max_document_chars
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_document_chars is {least}, more than max_document_chars, {most}")
        return self


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of a document.

    Attributes:
        text: what is left of it, or None where it is dropped.
        reason: why it is dropped.
        repaired: whether its encoding was mended.
        lines: lines left out, by rule.
        found: the downstream rows that it holds.
        hash_2: [2] of its words, where duplicates are looked for.
        signature_H: [H] of its shingles, where near-duplicates are.
    """

    text: str | None
    reason: str | None = None
    repaired: bool = False
    lines: dict[str, int] = field(default_factory=dict)
    found: tuple[Found, ...] = ()
    hash_2: Hashes | None = None
    signature_H: Signatures | None = None


class Cleaner:
    """Does to each document what the settings say. Made once; can be sent to other processes."""

    def __init__(self, settings: QualitySettings) -> None:
        """Read the downstream sets and see that what is needed is installed.

        Raises:
            UserError: a package is not installed; a downstream set cannot be used.
            MachineError: a downstream set cannot be read.
        """
        self._settings = settings
        self.downstream = (
            Downstream.load(settings.decontaminate, settings.ngram) if settings.decontaminate else None
        )
        # A package that is missing is missed now, not in a worker.
        if settings.repair:
            repair("Ä")
        if settings.keep_languages is not None:
            language_of("Ä")
        if settings.duplicates == "near":
            signature("Ä")

    def identity(self) -> dict[str, Any]:
        """What decides the result, for a manifest: the settings, downstream sets by content instead of by path."""
        values = {name: getattr(self._settings, name) for name in QualitySettings.model_fields}
        return values | {"decontaminate": self.downstream.identity() if self.downstream else None}

    def clean(self, text: str) -> Cleaned:
        """Take one document through all steps that are asked for; the first that refuses it ends its way."""
        return next(self.clean_all([text]))

    def clean_all(self, texts: Iterable[str]) -> Iterator[Cleaned]:
        """`clean` for each document, in order; short ones together, which is faster than one by one."""
        group: list[str] = []
        size = 0
        for text in texts:
            group.append(text)
            size += len(text)
            if size >= TOGETHER:
                yield from self._clean_group(group)
                group, size = [], 0
        yield from self._clean_group(group)

    def _clean_group(self, texts: list[str]) -> list[Cleaned]:
        how = self._settings
        cleaned = [self._clean_text(text) for text in texts]
        if not how.boilerplate and self.downstream is None and how.duplicates == "keep":
            return cleaned
        left = [(place, one.text) for place, one in enumerate(cleaned) if one.text is not None]
        words = find_all_words([text for _, text in left])
        lengths = REPETITION_RUNS if how.boilerplate else set()
        lengths |= {SHORTEST} if self.downstream is not None else set()
        lengths |= {SHINGLE} if how.duplicates == "near" else set()
        for n in lengths:
            find_ngrams(words, n)
        for (place, text), its_words in zip(left, words, strict=True):
            cleaned[place] = self._judge(cleaned[place], text, its_words)
        return cleaned

    def _clean_text(self, text: str) -> Cleaned:
        """The steps that read letters."""
        how, given = self._settings, text
        if how.repair:
            text = repair(text)
        repaired = text is not given and text != given
        lines: dict[str, int] = {}
        if how.boilerplate:
            text, dropped = drop_lines(text)
            lines = dict(dropped)
        reason = self._wrong_length(text)
        if reason is None and how.keep_languages is not None:
            language = language_of(text)
            if language not in how.keep_languages:
                reason = f"language {language}"
        return Cleaned(text if reason is None else None, reason, repaired, lines)

    def _judge(self, cleaned: Cleaned, text: str, words: Words) -> Cleaned:
        """The steps that read words."""
        how = self._settings
        if how.boilerplate and (reason := fault(text, words)) is not None:
            return replace(cleaned, text=None, reason=reason)
        if self.downstream is not None and (found := self.downstream.find(words)):
            return replace(cleaned, text=None, reason=CONTAMINATED, found=tuple(found))
        return replace(
            cleaned,
            hash_2=document_hash(text, words) if how.duplicates != "keep" else None,
            signature_H=signature(text, words) if how.duplicates == "near" else None,
        )

    def _wrong_length(self, text: str) -> str | None:
        least, most = self._settings.min_document_chars, self._settings.max_document_chars
        if not text.strip():
            return "no line is left"
        if least is not None and len(text) < least:
            return f"shorter than {least} characters"
        if most is not None and len(text) > most:
            return f"longer than {most} characters"
        return None


def make_cleaner(settings: QualitySettings) -> Cleaner | None:
    """A cleaner for these settings, or None where they ask for nothing."""
    asked = QualitySettings(**{name: getattr(settings, name) for name in QualitySettings.model_fields})
    nothing = QualitySettings(ngram=settings.ngram, similarity=settings.similarity)
    return None if asked == nothing else Cleaner(asked)


class CleanCounts:
    """What happened to the documents of a part, or of all of them."""

    def __init__(self, cleaner: Cleaner) -> None:
        """Nothing happened yet."""
        self.repaired = 0
        self.lines: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self.contamination = Contamination(cleaner.downstream) if cleaner.downstream is not None else None

    def add(self, place: str, cleaned: Cleaned) -> None:
        """Count one document, which stands at `place`: `news.jsonl line 17`."""
        self.repaired += cleaned.repaired
        self.lines.update(cleaned.lines)
        if cleaned.reason is not None:
            self.dropped[cleaned.reason] += 1
            self._remember(cleaned.reason, [place])
        if self.contamination is not None and cleaned.found:
            self.contamination.add(place, cleaned.found)

    def merge(self, later: CleanCounts) -> None:
        """Add what happened to the documents that follow."""
        self.repaired += later.repaired
        self.lines.update(later.lines)
        self.dropped.update(later.dropped)
        for reason, places in later.places.items():
            self._remember(reason, places)
        if self.contamination is not None and later.contamination is not None:
            self.contamination.merge(later.contamination)

    def to_json(self) -> dict[str, Any]:
        """As values that `from_json` reads; equal counts give equal bytes."""
        return {
            "repaired": self.repaired,
            "lines": dict(sorted(self.lines.items())),
            "dropped": dict(sorted(self.dropped.items())),
            "places": dict(sorted(self.places.items())),
            "contamination": self.contamination.to_json() if self.contamination is not None else None,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CleanCounts:
        """Read what `to_json` gave."""
        counts = cls.__new__(cls)
        counts.repaired = values["repaired"]
        counts.lines, counts.dropped = Counter(values["lines"]), Counter(values["dropped"])
        counts.places = {reason: list(places) for reason, places in values["places"].items()}
        report = values["contamination"]
        counts.contamination = Contamination.from_json(report) if report is not None else None
        return counts

    def report(self) -> list[str]:
        """What people read: a line for each thing that happened, then the report on downstream sets."""
        found = [f"{self.repaired:,} documents with a broken encoding mended"] if self.repaired else []
        found += [f"{count:,} lines left out: {rule}" for rule, count in sorted(self.lines.items())]
        for reason, count in sorted(self.dropped.items()):
            places = self.places[reason]
            more = ", ..." if count > len(places) else ""
            noun = "document" if count == 1 else "documents"
            found.append(f"{count:,} {noun} dropped: {reason} ({', '.join(places)}{more})")
        return found + (self.contamination.lines() if self.contamination is not None else [])

    def _remember(self, reason: str, places: Iterable[str]) -> None:
        known = self.places.setdefault(reason, [])
        known.extend(list(places)[: PLACES - len(known)])
