from __future__ import annotations

import itertools
import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.common.errors import UserError
from corpora.common.files import dump_json
from corpora.contamination import EXAMPLES, SHORTEST, Contamination, Downstream, Found
from corpora.downstream import DownstreamText
from corpora.words import find_words

PREMISE = "The job gains mean that the president can celebrate albeit by a very fine margin indeed"
SHORT = "A film of rare and quiet beauty, all told."  # 9 words
ZH = "委员会星期二开会讨论来年的预算许多成员都发表了自己的意见"  # 28 characters
TH = "คณะกรรมการประชุมกันเมื่อวันอังคารเพื่อหารือเรื่องงบประมาณปีหน้า"  # more than 52
AR = "اجتمعت اللجنة يوم الثلاثاء الماضي لمناقشة ميزانية العام المقبل بحضور جميع الأعضاء والمستشارين"
MIXED = "使用Transformer模型的GPU集群在二零二零年由OpenAI公司训练完成并且公开发布了结果"
FILLER = "Nothing of this kind was said before, and nothing came of it. "


def downstream(*texts: str, n: int = 13) -> Downstream:
    rows = [DownstreamText("rte", row, "premise", text) for row, text in enumerate(texts, 1)]
    return Downstream({"rte": rows}, n)


def rows(found: list[Found]) -> list[int]:
    return [one.row for one in found]


@pytest.mark.parametrize(
    "text", [PREMISE, SHORT, ZH, TH, AR, MIXED], ids=["en", "short", "zh", "th", "ar", "mixed"]
)
def test_a_row_is_found_in_a_document_in_any_script_and_not_in_one_without_it(text: str) -> None:
    sets = downstream("Another row that has nothing to do with any of the documents here", text)
    for document in (text, f"{FILLER * 20}{text}. {FILLER}", f"某些其他的文字。{text}。其他的。"):
        assert rows(sets.find(document)) == [2]
    assert not sets.find(FILLER * 30)
    assert not sets.find(text[: len(text) // 3] + FILLER)


def test_case_punctuation_and_spacing_do_not_hide_a_row() -> None:
    assert rows(downstream(PREMISE).find(PREMISE.upper().replace(" ", ",\n\n  "))) == [1]
    assert rows(downstream(ZH).find("，".join(ZH))) == [1]


def test_thirteen_words_in_a_row_are_enough_and_twelve_are_not() -> None:
    words = PREMISE.split()
    for start in range(len(words) - 12):
        assert rows(downstream(PREMISE).find(" ".join(["x", *words[start : start + 13], "y"]))) == [1]
    assert not downstream(PREMISE).find(" ".join(["x", *words[:12], "y", *words[12:]]))


def test_twenty_one_chinese_characters_are_enough_and_twenty_are_not() -> None:
    assert rows(downstream(ZH).find("甲" + ZH[3:24] + "乙")) == [1]
    assert not downstream(ZH).find("甲" + ZH[3:23] + "乙")


def test_a_short_text_has_to_stand_there_whole_and_a_very_short_one_is_not_looked_for() -> None:
    sets = downstream(SHORT, "It was a very good film.")
    assert rows(sets.find(FILLER + SHORT + FILLER)) == [1]
    assert not sets.find("A film of rare and quiet beauty, all said.")
    assert not sets.find("A film of rare and quiet beauty, all")
    assert not sets.find("It was a very good film.")
    assert sets.too_short == {"rte": 1}


def test_every_row_that_holds_a_run_is_named_and_the_words_are_shown() -> None:
    sets = downstream(PREMISE, f"He said: {PREMISE}", PREMISE.replace("job", "gold"))
    found = sets.find(FILLER + PREMISE)
    assert rows(found) == [1, 2, 3], "the third shares the words behind the one that differs"
    assert found[0].words == " ".join(PREMISE.lower().split()[:13])
    assert downstream(ZH).find(ZH)[0].words == ZH[:21]
    assert (
        downstream("使用 OpenAI GPU " * 6)
        .find("使用 OpenAI GPU " * 6)[0]
        .words.startswith("使用 openai gpu 使用")
    )


@given(
    st.lists(st.sampled_from("abcd"), max_size=60),
    st.lists(st.lists(st.sampled_from("abcd"), max_size=20), max_size=4),
)
@settings(max_examples=200)
def test_rows_are_found_exactly_where_a_search_of_every_run_finds_them(
    document: list[str], texts: list[list[str]]
) -> None:
    n = 9
    text = " " + " ".join(document) + " "
    wanted = [
        row
        for row, words in enumerate(texts, 1)
        if len(words) >= SHORTEST
        and any(f" {' '.join(words[k : k + n])} " in text for k in range(max(len(words) - n + 1, 1)))
    ]
    assert rows(downstream(*(" ".join(words) for words in texts), n=n).find(find_words(text))) == wanted


def test_equal_hashes_of_other_words_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from corpora import contamination
    from corpora.words import Ngrams, ngrams

    def all_alike(words: object, n: int) -> Ngrams:
        grams = ngrams(words, n)  # type: ignore[arg-type]
        return Ngrams(grams.starts_W, grams.ends_W, np.zeros_like(grams.hashes_W))

    monkeypatch.setattr(contamination, "ngrams", all_alike)
    sets = downstream(PREMISE, FILLER)
    assert rows(sets.find(PREMISE)) == [1]
    assert not sets.find("Quite other words than those of any row stand here, more than thirteen of them")


def test_sets_can_be_sent_to_another_process() -> None:
    sets = downstream(PREMISE, ZH)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(sets.find, (FILLER + PREMISE,)) == sets.find(FILLER + PREMISE)


def test_a_set_is_told_by_its_content_not_by_its_place(tmp_path: Path) -> None:
    identities = []
    for place in ("a", "b/c"):
        path = tmp_path / place / "test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"premise": PREMISE}) + "\n" + json.dumps({"premise": "short"}) + "\n")
        identities.append(Downstream.load([str(path)]).identity())
    assert identities[0] == identities[1]
    assert identities[0]["sets"] == {"test.jsonl": 2}
    path.write_text(json.dumps({"premise": PREMISE.lower()}) + "\n" + json.dumps({"premise": "short"}) + "\n")
    assert Downstream.load([str(path)]).identity() != identities[0]
    assert Downstream.load([str(path)], n=10).identity() != Downstream.load([str(path)]).identity()


def test_a_set_without_a_text_to_look_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["yes", "no"]')
    with pytest.raises(UserError, match=r"labels\.json: no text there has 8 words"):
        Downstream.load([str(tmp_path / "labels.json")])
    (tmp_path / "test.jsonl").write_text(json.dumps({"premise": PREMISE}))
    assert Downstream.load([str(tmp_path)]).rows == {"labels.json": 2, "test.jsonl": 1}


def documents() -> list[str]:
    return [PREMISE if number % 3 == 0 else ZH if number % 7 == 1 else FILLER for number in range(40)]


def test_the_report_is_the_same_however_the_documents_were_shared_out() -> None:
    sets = downstream(PREMISE, ZH, SHORT, "too short")

    def report(low: int, high: int) -> Contamination:
        made = Contamination(sets)
        for number in range(low, high):
            made.add(f"news.jsonl line {number + 1}", sets.find(documents()[number]))
        return made

    whole = report(0, 40)
    for bounds in ([0, 40], [0, 1, 40], [0, 13, 13, 26, 40], list(range(41))):
        merged = Contamination(sets)
        for low, high in itertools.pairwise(bounds):
            merged.merge(Contamination.from_json(json.loads(dump_json(report(low, high).to_json()))))
        assert dump_json(merged.to_json()) == dump_json(whole.to_json())
    assert whole.documents == 14 + 4
    assert whole.to_json()["sets"]["rte"]["found"] == [1, 2]


def test_the_report_says_how_much_was_found_and_where() -> None:
    sets = downstream(PREMISE, SHORT, "too short")
    report = Contamination(sets)
    assert report.lines() == ["rte: 0 of 3 rows stand in 0 documents (1 text is too short to be looked for)"]
    for number in range(1, 9):
        report.add(f"news.jsonl line {number}", sets.find(f"{PREMISE}. {SHORT}"))
    lines = report.lines()
    assert lines[0].startswith("rte: 2 of 3 rows stand in 8 documents")
    assert lines[1].startswith('  news.jsonl line 1: row 1, premise: "the job gains mean')
    assert len(lines) == 1 + 2 <= 1 + EXAMPLES, "an example for each row, the first place of it"
