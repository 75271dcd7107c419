"""Pages: kinds of question that share a look."""

from __future__ import annotations

from collections import Counter

import pytest

from launch.pocket.pages import (
    LETTERS,
    PAIR_KINDS,
    SENTENCE_KINDS,
    WORD_KINDS,
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
    patterns = {kind: {drawn.pair(kind)["pattern"] for _ in range(80)} for kind in PAIR_KINDS}
    assert len({frozenset(found) for found in patterns.values()}) == 1


def test_an_instruction_begins_with_no_option_letter_and_belongs_to_one_kind() -> None:
    for look in instructions().values():
        sentences = [sentence for kind in look.values() for sentence in kind]
        assert len(sentences) == len(set(sentences))
        assert not any(sentence[0] in LETTERS for sentence in sentences)


@pytest.mark.parametrize("kind", [*SENTENCE_KINDS, "repeat"])
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


@pytest.mark.parametrize("kind", WORD_KINDS)
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
