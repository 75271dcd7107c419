from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpora import quality as quality_module
from corpora import repair as repair_module
from corpora.common.errors import UserError
from corpora.common.files import dump_json
from corpora.common.settings import Settings, make_settings
from corpora.duplicates import SIGNATURE
from corpora.quality import CONTAMINATED, PLACES, CleanCounts, Cleaner, QualitySettings, make_cleaner

EN = "The committee met on Tuesday to discuss the budget for the coming year. Nobody agreed."
ZH = "委员会星期二开会讨论来年的预算，许多成员都发表了自己的意见，投票将在下周举行。"
DE = "Der Ausschuss trat am Dienstag zusammen, um über den Haushalt zu beraten. Niemand stimmte zu."


def cleaner(**values: Any) -> Cleaner:
    made = make_cleaner(QualitySettings(**values))
    assert made is not None
    return made


def downstream_file(folder: Path, *texts: str) -> str:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_nothing_is_done_unless_it_is_asked_for() -> None:
    assert make_cleaner(QualitySettings()) is None
    assert make_cleaner(QualitySettings(ngram=20, similarity=0.5)) is None, "they only say how"

    class Build(QualitySettings):
        out: str

    assert make_cleaner(Build(out="x")) is None
    assert make_cleaner(Build(out="x", repair=True)) is not None


def test_a_document_that_passes_comes_out_as_it_was() -> None:
    for text in (EN, ZH, f"{EN}\n{ZH}"):
        cleaned = cleaner(
            repair=True,
            keep_languages=["en", "zh"],
            min_document_chars=5,
            boilerplate=True,
            duplicates="near",
        ).clean(text)
        assert cleaned.text == text and cleaned.reason is None and not cleaned.repaired and not cleaned.lines
        assert cleaned.hash_2 is not None and cleaned.signature_H is not None
        assert cleaned.hash_2.shape == (2,) and cleaned.signature_H.shape == (SIGNATURE,)


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        ({"keep_languages": ["en", "zh"]}, DE, "language de"),
        ({"keep_languages": ["en"]}, "1234 5678", "language unknown"),
        ({"min_document_chars": 40}, "Too short.", "shorter than 40 characters"),
        ({"min_document_chars": 43}, ZH, "shorter than 43 characters"),
        ({"max_document_chars": 40}, EN, "longer than 40 characters"),
        ({"boilerplate": True}, "Home\nNews\nSport", "few lines end a sentence"),
        ({"boilerplate": True}, "We use cookies.", "no line is left"),
    ],
)
def test_each_filter_says_why_it_drops_a_document(settings: dict[str, Any], text: str, reason: str) -> None:
    cleaned = cleaner(**settings).clean(text)
    assert (cleaned.text, cleaned.reason) == (None, reason)


def test_lengths_count_characters_of_what_is_left_and_are_inclusive() -> None:
    assert cleaner(min_document_chars=len(ZH), max_document_chars=len(ZH)).clean(ZH).text == ZH
    cleaned = cleaner(boilerplate=True, min_document_chars=len(EN) + 1).clean(
        f"{EN}\nThis site uses cookies."
    )
    assert cleaned.reason == f"shorter than {len(EN) + 1} characters"
    assert cleaned.lines == {"cookie or policy line": 1}


def test_mended_text_is_what_the_other_steps_see(tmp_path: Path) -> None:
    row = "It cost £5, they said, and nobody would have paid a pound more than that price."
    made = cleaner(repair=True, decontaminate=[downstream_file(tmp_path, row)])
    broken = row.encode().decode("latin-1")
    assert broken != row
    cleaned = made.clean(f"{EN} {broken}")
    assert cleaned.repaired and cleaned.reason == CONTAMINATED
    assert [(one.set, one.row) for one in cleaned.found] == [("test.jsonl", 1)]
    assert cleaner(repair=True).clean(broken).text == row


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_languages": ["en", "deu"]}, 'unknown language "deu"; expected ISO'),
        ({"keep_languages": []}, "no language is named"),
        ({"min_document_chars": 10, "max_document_chars": 9}, "min_document_chars is 10, more than"),
        ({"ngram": 7}, "greater than or equal to 8"),
        ({"duplicates": "fuzzy"}, "'keep', 'exact' or 'near'"),
        ({"similarity": 0}, "greater than 0"),
    ],
)
def test_impossible_settings_are_refused_at_the_start(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_settings(QualitySettings, values, "command line")


def test_a_missing_package_is_missed_before_any_document_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    repair_module._fixer.cache_clear()
    with pytest.raises(UserError, match=r"ftfy.*pip install 'prompt-pretraining\[quality\]'"):
        make_cleaner(QualitySettings(repair=True, min_document_chars=1000))
    repair_module._fixer.cache_clear()


def test_a_cleaner_works_the_same_in_another_process(tmp_path: Path) -> None:
    made = cleaner(
        repair=True, boilerplate=True, duplicates="near", decontaminate=[downstream_file(tmp_path, ZH)]
    )
    texts = [EN, ZH, "Â£5 is the price of it.", "Home\nNews"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(made.clean, texts)
    for text, other in zip(texts, there, strict=True):
        here = made.clean(text)
        assert (here.text, here.reason, here.repaired, here.found) == (
            other.text, other.reason, other.repaired, other.found,
        )  # fmt: skip
        for mine, others in ((here.hash_2, other.hash_2), (here.signature_H, other.signature_H)):
            assert (mine is None and others is None) or mine.tolist() == others.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1, 200, 1 << 18])
def test_documents_that_are_cleaned_together_come_out_as_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(quality_module, "TOGETHER", size)
    made = cleaner(
        repair=True, boilerplate=True, duplicates="near", decontaminate=[downstream_file(tmp_path, ZH)]
    )
    texts = [
        EN,
        ZH,
        "",
        "Â£5 is the price of it.",
        f"{DE}\nWe use cookies.",
        "Home\nNews",
        f"{EN} {DE}",
        "猫。",
        DE,
    ]
    together = list(made.clean_all(texts))
    assert len(together) == len(texts) and not list(made.clean_all([]))
    for text, one in zip(texts, together, strict=True):
        alone = made.clean(text)
        assert (one.text, one.reason, one.repaired, one.lines, one.found) == (
            alone.text, alone.reason, alone.repaired, alone.lines, alone.found,
        )  # fmt: skip
        if one.text is not None:
            assert np.array_equal(one.hash_2, alone.hash_2)  # type: ignore[arg-type]
            assert np.array_equal(one.signature_H, alone.signature_H)  # type: ignore[arg-type]


def test_what_decides_the_result_is_cited_without_a_path(tmp_path: Path) -> None:
    class Build(QualitySettings):
        out: str

    identities = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        settings = Build(out=place, decontaminate=[downstream_file(tmp_path / place, EN)], duplicates="near")
        identities.append(Cleaner(settings).identity())
    assert identities[0] == identities[1]
    assert str(tmp_path) not in dump_json(identities[0])
    assert identities[0]["duplicates"] == "near" and "out" not in identities[0]
    assert issubclass(QualitySettings, Settings)


def test_counts_are_the_same_however_the_documents_were_shared_out(tmp_path: Path) -> None:
    made = cleaner(
        repair=True,
        boilerplate=True,
        min_document_chars=12,
        decontaminate=[downstream_file(tmp_path, ZH, EN)],
    )
    texts = [
        EN,
        DE,
        ZH,
        "Too short.",
        "It cost Â£5, not more.",
        f"{DE}\nWe use cookies.",
        "Home\nNews\nSport\nShop",
    ] * 9

    def counts(low: int, high: int) -> CleanCounts:
        found = CleanCounts(made)
        for number in range(low, high):
            found.add(f"news.jsonl line {number + 1}", made.clean(texts[number]))
        return found

    whole = counts(0, len(texts))
    for step in (1, 5, 40):
        merged = CleanCounts(made)
        for low in range(0, len(texts), step):
            part = counts(low, min(low + step, len(texts)))
            merged.merge(CleanCounts.from_json(json.loads(dump_json(part.to_json()))))
        assert dump_json(merged.to_json()) == dump_json(whole.to_json())
        assert merged.report() == whole.report()
    assert whole.repaired == 9 and whole.lines == {"cookie or policy line": 9}
    assert whole.dropped == {
        CONTAMINATED: 18, "shorter than 12 characters": 9, "few lines end a sentence": 9,
    }  # fmt: skip
    assert all(len(places) == PLACES for places in whole.places.values())
    report = whole.report()
    assert report[:3] == [
        "9 documents with a broken encoding mended",
        "9 lines left out: cookie or policy line",
        "9 documents dropped: few lines end a sentence (news.jsonl line 7, news.jsonl line 14, news.jsonl line 21, "
        "news.jsonl line 28, news.jsonl line 35, ...)",
    ]
    assert report[-3] == "test.jsonl: 2 of 2 rows stand in 18 documents"
