from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import boilerplate
from corpora.boilerplate import JAVASCRIPT, LOOKED_AT, POLICY, drop_lines, fault
from corpora.words import find_words, ngrams

GOOD = {
    "en": "The committee met on Tuesday.\nIt discussed the budget, and nobody agreed.\nThe vote is next week.",
    "short": "Yes.",
    "zh": "委员会星期二开会。\n会议讨论了来年的预算，许多成员都发表了意见！\n投票将在下周举行。",
    "zh-quoted": "他说：“好的。”\n她说：「好。」\n大家都同意了……",
    "ja": "委員会は火曜日に開かれた。\n予算について話し合い、意見は分かれた。\n投票は来週である。",
    "th": "คณะกรรมการประชุมกันเมื่อวันอังคาร\nที่ประชุมหารือเรื่องงบประมาณปีหน้า\nจะลงคะแนนในสัปดาห์หน้า",
    "ar": "اجتمعت اللجنة يوم الثلاثاء.\nهل وافق الجميع على الميزانية؟\nيكون التصويت في الأسبوع المقبل.",
    "he": "הוועדה נפגשה ביום שלישי.\nהיא דנה בתקציב, ואיש לא הסכים.\nההצבעה תהיה בשבוע הבא.",
    "ur": "کمیٹی کا اجلاس منگل کو ہوا۔\nبجٹ پر بحث ہوئی۔",
    "hi": "समिति की बैठक मंगलवार को हुई।\nबजट पर चर्चा हुई।",
    "ko": "위원회는 화요일에 모였다.\n내년 예산을 논의했다.",
    "vi": "Ủy ban đã họp vào thứ ba.\nHọ bàn về ngân sách năm tới.",
    "mixed": "使用 GPU 训练 Transformer 模型。\nOpenAI released the model in 2020.\n结果很好。",
}


@pytest.mark.parametrize("name", GOOD)
def test_running_text_of_any_script_stays(name: str) -> None:
    assert drop_lines(GOOD[name]) == (GOOD[name], {})
    assert fault(GOOD[name]) is None


@pytest.mark.parametrize("name", ["en", "zh", "ja", "th", "ar", "he"])
def test_a_long_document_of_one_language_is_no_repetition(name: str) -> None:
    rng = random.Random(0)
    letters = sorted({char for char in GOOD[name] if char.isalpha()})
    spaced = name in ("en", "ar", "he")
    lines = []
    for _ in range(40):
        words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(12)]
        lines.append((" " if spaced else "").join(words) + ("" if name == "th" else "."))
    assert fault("\n".join(lines)) is None


BAD = {
    "lorem ipsum": "Our company.\nLorem ipsum dolor sit amet.\nContact us.",
    "list of bullets": "• Home.\n• News.\n• Sport.\n- Weather.\n",
    "lines cut off by ellipses": "The committee met on...\nRead the rest…\nA whole sentence.",
    "few lines end a sentence": "Home\nNews\nSport\nWeather\nAbout us\nContact\nJobs\nShop\nOne sentence.",
    "repeated lines": "Read more.\nRead more.\nRead more.\nSomething else was said here.",
    "many symbols": "#news #sport #weather and more.",
    "few words with letters": "1 2 3 4 | 5 6 | 7 8.\nTotal 9.",
    "words too short or too long": "a b c d e f g h i j k.",
    "no words": "!!! ??? !",
}


@pytest.mark.parametrize("reason", BAD)
def test_each_rule_drops_what_it_is_for_and_names_itself(reason: str) -> None:
    assert fault(BAD[reason]) == reason


def test_chinese_menus_and_repetitions_are_dropped_too() -> None:
    assert (
        fault("首页\n新闻\n体育\n天气\n关于我们\n联系方式\n招聘\n商店\n文章。") == "few lines end a sentence"
    )
    assert fault("阅读全文。\n阅读全文。\n阅读全文。\n这里说的是另一件事。") == "repeated lines"
    rng = random.Random(1)
    said = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(100))
    again = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(100))
    assert fault(f"{said}。{again}。") is None
    assert fault(f"{said}。{again}。{said[:60]}。") == "repeated text"
    assert fault("买它" * 100 + "。" + said + "。") == "one phrase again and again"


def test_repeated_runs_of_words_are_measured_in_characters_and_none_counts_twice() -> None:
    rng = random.Random(2)
    words = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(100)]
    text = " ".join(words + words[20:40])
    assert boilerplate._repeated_share(find_words(text), 5) == pytest.approx(20 / 120)
    assert boilerplate._repeated_share(find_words(text), 10) == pytest.approx(20 / 120)
    assert boilerplate._repeated_share(find_words(" ".join(words)), 5) == 0
    assert fault(text + ".") == "repeated text"
    assert fault(" ".join(words + words[20:32]) + ".") == "repeated text", (
        "12 of 112 are more than 10 %, in runs of 10"
    )
    assert fault(" ".join(words + words[20:31]) + ".") is None, "11 of 111 are not"


def test_the_most_frequent_pair_of_words_is_measured_in_characters() -> None:
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(70)]
    text = " ".join(f"{word} buy now" if k % 2 else word for k, word in enumerate(words))
    found = find_words(text)
    assert boilerplate._top_share(found, 2) == pytest.approx(35 * 6 / (70 * 5 + 35 * 6))
    assert len(ngrams(found, 2)) > 50 and fault(text + ".") == "one phrase again and again"


def test_a_short_text_may_repeat_itself() -> None:
    assert fault("No, no, no, no, no, no!") is None


def test_lines_of_the_page_around_the_text_are_left_out_and_counted() -> None:
    text = "Please enable JavaScript to go on.\nThe vote is next week.\nThis site uses cookies.\n我们的隐私政策\nEnd."
    assert drop_lines(text) == ("The vote is next week.\nEnd.", {JAVASCRIPT: 1, POLICY: 2})


def test_words_known_already_give_the_same_judgement_and_of_long_documents_the_start_is_judged() -> None:
    for text in [*GOOD.values(), *BAD.values()]:
        assert fault(text, find_words(text)) == fault(text)
    rng = random.Random(4)
    line = " ".join("".join(rng.choices("abcdefghijklmnop", k=5)) for _ in range(LOOKED_AT // 6)) + ".\n"
    text = line + "# " * len(line)
    assert fault(text) is None
    assert fault(text, find_words(text)) is None


@given(st.lists(st.integers(0, 40), max_size=200), st.sampled_from([0, 3, 59, 60]))
def test_what_was_seen_before_is_found_as_by_looking_at_every_place(numbers: list[int], shift: int) -> None:
    hashes = np.array(numbers, np.uint64) << np.uint64(shift)  # small numbers share the slots of the table
    numbers[:] = (hashes >> np.uint64(shift)).tolist()
    wanted = [number in numbers[:place] for place, number in enumerate(numbers)]
    assert boilerplate._seen_before(hashes).tolist() == wanted
