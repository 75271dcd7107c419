"""Pages: kinds of question that share a look."""

from __future__ import annotations

from collections import Counter

import pytest

from corpora.tokenizer import LETTERS
from launch.pocket.pages import (
    FIRST,
    MEETINGS,
    SECOND,
    THIRD,
    Pages,
    as_text,
    instructions,
    pages,
)
from launch.pocket.world import World, side_of


def test_pages_are_the_same_for_the_same_seed_and_start_easy() -> None:
    drawn = list(pages(3000, 5))
    assert drawn == list(pages(3000, 5))
    assert {page["kind"] for page in drawn[:200]} == {"person", "repeat"}
    assert max(len(page["options"]) for page in drawn[:200]) == 2
    assert max(len(page["options"]) for page in drawn[2000:]) > 6


def test_kinds_of_one_look_differ_in_nothing_but_the_instruction() -> None:
    drawn = Pages(World(0, "text"), bare=1.0)
    patterns = {kind: {drawn.pair(kind)["pattern"] for _ in range(80)} for kind in FIRST.pairs}
    assert len({frozenset(found) for found in patterns.values()}) == 1


def test_an_instruction_begins_with_no_option_letter_and_belongs_to_one_kind() -> None:
    for look in instructions().values():
        sentences = [sentence for kind in look.values() for sentence in kind]
        assert len(sentences) == len(set(sentences))
        assert not any(sentence[0] in LETTERS for sentence in sentences)


@pytest.mark.parametrize("kind", [*SECOND.sentences, *MEETINGS, "repeat"])
@pytest.mark.parametrize("n", [2, 6, 16])
def test_a_quiz_has_its_options_once_and_its_answer_among_them(kind: str, n: int) -> None:
    drawn = Pages(World(1, "text"))
    for _ in range(20):
        page = drawn.sentence_choice(kind, n)
        assert len(page["options"]) == len(set(page["options"])) == n
        assert page["target"] in LETTERS[:n]


def test_answers_are_spread_evenly_over_the_letters() -> None:
    drawn = Pages(World(2, "text"))
    counts = Counter(drawn.sentence_choice("together", 4)["target"] for _ in range(800))
    assert min(counts.values()) > 150


def test_person_and_stranger_ask_for_opposite_options_in_one_look() -> None:
    drawn = Pages(World(6, "text"), bare=1.0, course=SECOND)

    def names(text: str) -> set[str]:
        return {word.strip(".") for word in text.split()} & set(drawn.words.names)

    for kind, matches in (("person", True), ("stranger", False)):
        for _ in range(60):
            page = drawn.sentence_choice(kind, 4)
            person = names(page["fields"]["query"].split(". ")[-1])
            same = [names(option) == person for option in page["options"]]
            right = LETTERS.index(page["target"])
            assert [place for place, is_same in enumerate(same) if is_same == matches] == [right]


def test_a_meeting_quiz_has_an_option_of_either_person_and_nothing_tells_which_is_meant() -> None:
    drawn = Pages(World(8, "text"), bare=1.0, course=THIRD)
    places: dict[str, Counter[int]] = {}
    for kind in MEETINGS:
        places[kind] = Counter()
        for _ in range(200):
            page = drawn.sentence_choice(kind, 4)
            sentence = page["fields"]["query"].rstrip(".").split(". ")[-1].split()
            actor, mate = sentence[0], sentence[-1]
            have = [[name in option for name in (actor, mate)] for option in page["options"]]
            assert sorted(have) == [[False, False], [False, False], [False, True], [True, False]]
            assert have[LETTERS.index(page["target"])] == [kind == "mover", kind == "mate"]
            places[kind][LETTERS.index(page["target"])] += 1
    assert all(min(found.values()) > 25 for found in places.values())


def test_the_second_course_asks_quizzes_of_words_as_quizzes_of_sentences_are_asked() -> None:
    shared = {wording for kind in ("together", "person") for wording in instructions()["choice"][kind]}
    drawn = Pages(World(7, "text"), bare=0.0, course=SECOND)
    asked = [drawn.word_choice("who", 4)["pattern"].split(" ? ")[0] for _ in range(200)]
    assert 60 < sum(wording in shared for wording in asked) < 140


@pytest.mark.parametrize("kind", [*FIRST.words, *MEETINGS])
def test_a_quiz_over_words_holds_the_right_one(kind: str) -> None:
    drawn = Pages(World(3, "text"))
    for _ in range(20):
        page = drawn.word_choice(kind, 10)
        assert page["target"] in LETTERS[: len(page["options"])]
        assert len(set(page["options"])) == len(page["options"])


def test_the_same_statements_get_opposite_answers_under_opposite_kinds() -> None:
    world = World(4, "text")
    drawn = Pages(world)
    same = {kind: Counter() for kind in ("person", "persons")}
    for kind, counts in same.items():
        for _ in range(100):
            one, two, answer = drawn.two(kind)
            counts[one.actor == two.actor, answer] += 1
    assert set(same["person"]) == {(True, "yes"), (False, "no")}
    assert set(same["persons"]) == {(True, "no"), (False, "yes")}


def test_pages_show_sentences_of_their_own_side_only() -> None:
    drawn = Pages(World(5, "trial"))
    for _ in range(50):
        page = drawn.sentence_choice(None, 4)
        assert all(side_of(option) == "trial" for option in page["options"])


def test_a_page_as_text_has_its_answer_in_place() -> None:
    drawn = Pages(World(6, "text"), bare=1.0)
    page = drawn.single("about")
    assert as_text(page) == f"{page['fields']['text']} {page['target']}"
