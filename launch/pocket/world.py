"""The pocket world: readable English-like sentences and documents, drawn from a grammar and word lists.

A document is a chain of short sentences about one topic, each of which shares a thing with the next, or a relay, which tells of
persons in turn. Actors recur in all topics. Some sentences give an opinion of a thing and, apart from it, of a person.

Every sentence belongs to one *side* of the world by its text (a checksum): what is shown to a backbone, what rates are
chosen on and what the demo is tested on never have a sentence in common.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from corpora.common.files import write_text_atomic
from corpora.common.rng import generator

HERE = Path(__file__).parent
SIDES = {"text": (0, 1, 2, 3, 4, 5), "trial": (6,), "test": (7,)}  # side -> remainders of the checksum by 8
PLACED = 0.35  # share of the plain sentences that name a place: the name of another topic
CAST = 4  # actors of a document
OPINIONS = 0.3  # share of a document's sentences that give an opinion

T = TypeVar("T")


@dataclass(frozen=True)
class Words:
    """The word lists of `words.yaml`."""

    topics: dict[str, list[str]]
    names: list[str]
    verbs: list[str]
    of_things: list[list[str]]
    of_people: list[list[str]]
    levels: list[str]

    @property
    def places(self) -> list[str]:
        """The topics' names, in the order of the file."""
        return list(self.topics)


@lru_cache(maxsize=1)
def words() -> Words:
    """The word lists, read once."""
    return Words(**yaml.safe_load((HERE / "words.yaml").read_text(encoding="utf-8")))


class Dice:
    """Draws from a seeded generator, one number at a time."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self._rng.random() < probability)

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._rng.random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self._rng.random() * len(items))]

    def other(self, items: Sequence[T], *without: T) -> T:
        """One of the items that is none of `without`."""
        while True:
            item = self.pick(items)
            if item not in without:
                return item

    def weighted(self, weights: dict[T, float]) -> T:
        """One of the keys, as often as its weight says."""
        at = self._rng.random() * sum(weights.values())
        for key, weight in weights.items():
            at -= weight
            if at < 0:
                return key
        return key

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in another order."""
        return [items[i] for i in self._rng.permutation(len(items))]


@dataclass(frozen=True)
class Sentence:
    """A sentence and what it is made of.

    Attributes:
        text: as it stands in a document.
        topic: what it is about.
        actor: who is in it.
        nouns: the topic's things in it, one (opinions) or two.
        place: another topic's name that stands in it as a place, or "".
        thing: level 0 to 4 of the opinion of the thing, -1 without one.
        person: the same for the person.
        mate: who is there as well, or "".
    """

    text: str
    topic: str
    actor: str
    nouns: tuple[str, ...]
    place: str = ""
    thing: int = -1
    person: int = -1
    mate: str = ""


def side_of(text: str) -> str:
    """The side of the world that a sentence belongs to."""
    rest = zlib.crc32(text.encode("utf-8")) % 8
    return next(side for side, rests in SIDES.items() if rest in rests)


class World:
    """Draws sentences of one side."""

    def __init__(self, seed: int, side: str, *keys: str | int) -> None:
        self.side = side
        self.dice = Dice(generator(seed, "pocket", side, *keys))
        self.words = words()

    def nouns(self, topic: str, n: int, *without: str) -> list[str]:
        """`n` different things of a topic."""
        chosen: list[str] = []
        while len(chosen) < n:
            chosen.append(self.dice.other(self.words.topics[topic], *without, *chosen))
        return chosen

    def topic(self, *without: str) -> str:
        """A topic that is none of `without`."""
        return self.dice.other(self.words.places, *without)

    def actor(self, *without: str) -> str:
        """An actor who is none of `without`."""
        return self.dice.other(self.words.names, *without)

    def story(
        self,
        topic: str,
        actor: str,
        one: str | None = None,
        without: Sequence[str] = (),
        placed: float = PLACED,
        places: Sequence[str] | None = None,
    ) -> Sentence:
        """A plain sentence: somebody did something to a thing.

        Args:
            topic: its topic.
            actor: who is in it.
            one: a thing that must be in it.
            without: things that must not be in it.
            placed: how likely it names a place.
            places: the places to draw from (all other topics by default).
        """
        while True:
            first = one or self.nouns(topic, 1, *without)[0]
            second = self.nouns(topic, 1, first, *without)[0]
            # The shared thing stands first or second, so that its place in the sentence tells nothing.
            nouns = (first, second) if self.dice.chance(0.5) else (second, first)
            verb = self.dice.pick(self.words.verbs)
            place = ""
            if self.dice.chance(placed):
                place = self.dice.other(places or self.words.places, topic)
                text = f"{actor} {verb} the {nouns[0]} and the {nouns[1]} in the {place}."
            elif self.dice.chance(0.5):
                text = f"{actor} {verb} the {nouns[0]} near the {nouns[1]}."
            else:
                text = f"{actor} {verb} the {nouns[0]} with the {nouns[1]}."
            if side_of(text) == self.side:
                return Sentence(text, topic, actor, nouns, place)

    def opinion(
        self,
        topic: str,
        actor: str,
        thing: int,
        person: int,
        one: str | None = None,
        without: Sequence[str] = (),
    ) -> Sentence:
        """A sentence with an opinion of a thing and another of a person, in either order; levels 0 to 4.

        Raises:
            LookupError: no wording with the thing `one` belongs to this side of the world.
        """
        for _ in range(200):
            noun = one or self.nouns(topic, 1, *without)[0]
            of_thing = self.dice.pick(self.words.of_things[thing])
            of_person = self.dice.pick(self.words.of_people[person])
            link = "but" if (thing - 2) * (person - 2) < 0 else self.dice.pick(("and", "while"))
            if self.dice.chance(0.5):
                text = f"The {noun} was {of_thing} {link} {actor} was {of_person}."
            else:
                text = f"{actor} was {of_person} {link} the {noun} was {of_thing}."
            if side_of(text) == self.side:
                return Sentence(text, topic, actor, (noun,), "", thing, person)
        raise LookupError(f"no opinion of {one} and {actor} is on the side {self.side}")

    def meeting(self, topic: str, actor: str, mate: str, without: Sequence[str] = ()) -> Sentence:
        """A sentence with two persons: somebody did something to a thing with somebody."""
        while True:
            noun = self.nouns(topic, 1, *without)[0]
            text = f"{actor} {self.dice.pick(self.words.verbs)} the {noun} with {mate}."
            if side_of(text) == self.side:
                return Sentence(text, topic, actor, (noun,), mate=mate)

    def sentence(
        self,
        topic: str,
        actor: str,
        one: str | None = None,
        without: Sequence[str] = (),
        opinions: float = OPINIONS,
    ) -> Sentence:
        """A plain sentence or an opinion with any levels."""
        if self.dice.chance(opinions):
            with contextlib.suppress(LookupError):
                return self.opinion(topic, actor, self.dice.below(5), self.dice.below(5), one, without)
        return self.story(topic, actor, one, without)

    def document(self) -> list[Sentence]:
        """A chain of 6 to 10 sentences about one topic and up to four persons: each shares a thing with the next."""
        topic = self.topic()
        cast = [self.actor() for _ in range(CAST)]
        sentences = [self.sentence(topic, self.dice.pick(cast), opinions=0.0)]
        link = sentences[0].nouns[1]
        for _ in range(5 + self.dice.below(5)):
            used = list({noun: 0 for sentence in sentences for noun in sentence.nouns if noun != link})
            used = used[-9:]  # a topic has 12 things: leave some to go on with
            after_opinion = len(sentences[-1].nouns) == 1
            opinions = 0.0 if after_opinion else OPINIONS * 1.25  # never two of one thing in a row
            sentences.append(self.sentence(topic, self.dice.pick(cast), link, used, opinions))
            link = next((noun for noun in sentences[-1].nouns if noun != link), link)
        return sentences

    def relay(self) -> list[Sentence]:
        """A story of 6 or 9 sentences about one topic that tells of two or three persons in turn.

        Each has three sentences; in the middle one the same passer-by, who is in no other, does something with the person.
        """
        topic, dice = self.topic(), self.dice
        passer_by, *persons = dice.shuffled(self.words.names)[: 3 + dice.below(2)]
        sentences: list[Sentence] = []
        used: list[str] = []
        for person in persons:
            for place in range(3):
                if place == 1:
                    sentences.append(self.meeting(topic, passer_by, person, used))
                else:
                    sentences.append(self.sentence(topic, person, without=used, opinions=2 * OPINIONS))
                used = [*used, *sentences[-1].nouns][-8:]
        return sentences


def documents(n: int, seed: int, side: str = "text", relay: bool = False) -> list[list[Sentence]]:
    """`n` documents of a side, each from a stream of its own; `World.relay` with `relay`."""
    worlds = [World(seed, side, "document", number) for number in range(n)]
    return [world.relay() if relay else world.document() for world in worlds]


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as JSON lines."""
    write_text_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_documents(path: Path, n: int, seed: int, relay: bool = False) -> None:
    """Write `n` documents as JSON lines, a sentence a line of each text."""
    found = documents(n, seed, relay=relay)
    write_jsonl(path, [{"text": "\n".join(sentence.text for sentence in document)} for document in found])
