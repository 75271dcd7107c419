"""The pocket world: sentences, documents and their sides."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from launch.pocket.world import SIDES, World, documents, side_of, words, write_documents


def test_every_word_has_one_role() -> None:
    lists = words()
    groups = [
        lists.places,
        *lists.topics.values(),
        lists.names,
        lists.verbs,
        *lists.of_things,
        *lists.of_people,
    ]
    found = [word for group in groups for word in group]
    assert len(found) == len(set(found))


def test_no_sentence_begins_with_an_option_letter() -> None:
    starts = {sentence.text[0] for document in documents(200, 0) for sentence in document}
    assert not starts & set("ABCDEFGHIJKLMNOP")


def test_the_same_seed_gives_the_same_documents_and_another_seed_others() -> None:
    assert documents(5, 3) == documents(5, 3)
    assert documents(5, 3) != documents(5, 4)
    assert documents(5, 3) == documents(9, 3)[:5]


def test_a_document_has_one_topic_and_neighbours_share_a_thing() -> None:
    for document in documents(100, 1):
        assert 6 <= len(document) <= 10
        assert len({sentence.topic for sentence in document}) == 1
        for one, two in pairwise(document):
            assert set(one.nouns) & set(two.nouns)


def test_each_side_draws_its_own_sentences_only() -> None:
    assert sorted(rest for rests in SIDES.values() for rest in rests) == list(range(8))
    for side in SIDES:
        world = World(0, side)
        for _ in range(200):
            assert side_of(world.sentence(world.topic(), world.actor()).text) == side


def test_documents_are_written_a_sentence_a_line(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.jsonl", 4, 0)
    records = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    assert [record["text"].split("\n") for record in records] == [
        [sentence.text for sentence in document] for document in documents(4, 0)
    ]


def test_a_relay_tells_of_two_or_three_persons_in_turn() -> None:
    for document in documents(40, seed=3, relay=True):
        assert len({sentence.topic for sentence in document}) == 1
        persons = [sentence.mate or sentence.actor for sentence in document]
        assert persons == [name for name in persons[::3] for _ in range(3)]
        assert len(set(persons)) == len(persons) // 3 in (2, 3)
        (passer_by,) = {sentence.actor for sentence in document if sentence.mate}
        assert passer_by not in persons
