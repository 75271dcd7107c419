"""Settings of a build."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from corpora.common.errors import nearest
from corpora.common.settings import Settings
from corpora.formats import FORMATS
from corpora.quality import QualitySettings
from corpora.segment import Language, Unit

Probability = Annotated[float, Field(ge=0, lt=1)]


class LabelSettings(Settings):
    """How labels become the `single_text` corpus."""

    labeller_words: list[str] | None = None  # label words of a sequence classifier, in its order
    keep: float | None = Field(default=None, gt=0, le=1)  # surest share of each class; linear: 0.2
    thresholds: list[Probability] | None = None  # one a class, in place of `keep`
    balance: bool = True  # down to the rarest class
    workers: int = Field(default=1, ge=1)  # processes; the result is the same for any number


class BuildSettings(LabelSettings, QualitySettings):
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
    part_bytes: int = Field(default=8 << 20, ge=1)  # of text in a part, the unit of resuming and of shards
    engine: Literal["processes", "ray"] = "processes"  # who does the work; the result is the same
    shard: tuple[int, int] | None = None  # make only the parts of this one of so many shards, and no store

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, formats: list[str] | None) -> list[str] | None:
        for name in formats or []:
            if name not in FORMATS:
                raise ValueError(f'unknown format "{name}"{nearest(name, FORMATS)}')
        return formats

    @field_validator("shard", mode="before")
    @classmethod
    def _inside(cls, shard: Any) -> Any:
        """Read `i/n`."""
        if shard is None or isinstance(shard, (tuple, list)):
            return shard
        index, slash, count = str(shard).partition("/")
        if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise ValueError("expected I/N with I from 0 to N - 1, such as 0/4")
        return int(index), int(count)
