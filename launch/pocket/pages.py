"""Pages of the pocket world that hold abilities in natural form: questions of many kinds that share one look.

Four looks, those of the formats: `one <X> two`, `text <X>`, `query ? A . o . B . o . ? The correct one is <X>` with
sentences or with words as options. Within a look many kinds of question are asked, told apart by an instruction in front;
an eighth of the pages has none, and wrong options are what another kind would call right. So the bare pattern
is ambiguous, and what a prompt can do is to say which kind is meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from corpora.tokenizer import LETTERS
from launch.pocket.world import HERE, Sentence, World, write_jsonl

Page = dict[str, Any]  # {"pattern", "fields", "options", "target", "kind"}
BARE = 0.12  # share of the pages without an instruction
MEETINGS = ("mover", "mate")  # which of two persons in a sentence is asked for
CHOICE = "? {options} ? The correct one is <X>"
KINS = {
    "about": ("together", "topic"),
    "who": ("together", "person"),
}  # wordings that a quiz of words shares with one of sentences


@dataclass(frozen=True)
class Course:
    """What pages are drawn, and the ladder of difficulty.

    Attributes:
        looks: look -> share.
        pairs, sentences, words, singles: kinds of a look -> share.
        since: "look" or "look kind" -> how far the training has gone when it comes in (0 where not named).
        opening: until then quizzes of sentences have two options and all ask for a repeated sentence; below 0 as if the ladder
            had begun before the course.
        repeats: share of the quizzes that go on asking for it, at the end of the ladder.
        growth: options more than two, over the whole of the course.
        sixteen: share of the quizzes of sentences with up to sixteen options instead of six.
        shared: share of the quizzes of words that are asked as quizzes of sentences are (see KINS).
        close: share of the quizzes about what goes on that have a wrong option of the right one's topic.
    """

    looks: dict[str, float]
    pairs: dict[str, float]
    sentences: dict[str, float]
    words: dict[str, float]
    singles: dict[str, float]
    since: dict[str, float] = field(default_factory=dict)
    opening: float = 0.0
    repeats: float = 0.08
    growth: int = 14
    sixteen: float = 0.1
    shared: float = 0.0
    close: float = 1.0

    def open(self, look: str, progress: float) -> dict[str, float]:
        """The kinds of a look, or of `looks`, that have come in by now."""
        prefix = "" if look == "looks" else f"{look} "
        weights: dict[str, float] = getattr(self, look)
        return {
            kind: weight for kind, weight in weights.items() if progress >= self.since.get(prefix + kind, 0.0)
        }


# Comparing two names and pointing at a repeated sentence come first and alone until both are learnt; with all kinds from the
# start, or the others after half the time, neither was.
FIRST = Course(
    looks={"pair": 0.34, "sentence_choice": 0.36, "word_choice": 0.12, "single": 0.12, "pair_letters": 0.06},
    pairs={"together": 0.34, "apart": 0.26, "person": 0.16, "persons": 0.16, "feeling": 0.08},
    sentences={"together": 0.36, "topic": 0.16, "person": 0.2, "odd": 0.28},
    words={"about": 0.4, "where": 0.2, "who": 0.1, "thing": 0.15, "human": 0.15},
    singles={"thing": 0.34, "human": 0.26, "about": 0.2, "where": 0.12, "who": 0.08},
    since={
        "single": 0.14, "word_choice": 0.3, "pair_letters": 0.45,
        "pairs persons": 0.14, "pairs together": 0.17, "pairs apart": 0.28, "pairs feeling": 0.4,
        "sentences together": 0.24, "sentences topic": 0.36, "sentences odd": 0.36,
        "words where": 0.35, "words thing": 0.45, "words human": 0.45,
    },
    opening=0.14,
)  # fmt: skip
# The first course leaves pointing across options half learnt: at one of two or three, and only by person. The second is mostly such
# quizzes, which ask for the same person or for another.
SECOND = Course(
    looks={"pair": 0.2, "sentence_choice": 0.44, "word_choice": 0.2, "single": 0.12, "pair_letters": 0.04},
    pairs={"together": 0.42, "apart": 0.26, "person": 0.12, "persons": 0.12, "feeling": 0.08},
    sentences={"person": 0.42, "stranger": 0.34, "topic": 0.12, "odd": 0.06, "together": 0.06},
    words={"about": 0.26, "where": 0.1, "who": 0.4, "thing": 0.12, "human": 0.12},
    singles={"thing": 0.28, "human": 0.28, "about": 0.18, "where": 0.14, "who": 0.12},
    since={"words where": 0.2, "words thing": 0.2, "words human": 0.2},
    opening=-0.36,
    repeats=0.08,
    growth=10,
    sixteen=0.25,
    shared=0.5,
    close=0.15,
)
# In the second a quiz of more than two options tells by itself whether the person or a stranger is wanted (the one that is alone). The
# third adds two kinds that no count of options tells apart: which of two persons in one sentence is meant.
THIRD = Course(
    looks={"pair": 0.24, "sentence_choice": 0.42, "word_choice": 0.16, "single": 0.14, "pair_letters": 0.04},
    pairs=SECOND.pairs,
    sentences={"mover": 0.4, "mate": 0.4, "stranger": 0.04, "topic": 0.08, "together": 0.08},
    words={"mover": 0.3, "mate": 0.3, "about": 0.1, "where": 0.1, "thing": 0.1, "human": 0.1},
    singles={"thing": 0.28, "human": 0.28, "about": 0.16, "where": 0.12, "mover": 0.08, "mate": 0.08},
    opening=-0.4,
    repeats=0.06,
    growth=10,
    sixteen=0.3,
    shared=0.5,
    close=0.15,
)
COURSES = {"first": FIRST, "second": SECOND, "third": THIRD}


@lru_cache(maxsize=1)
def instructions() -> dict[str, dict[str, list[str]]]:
    """The wordings of `instructions.yaml`: look -> kind -> sentences without their question mark."""
    return yaml.safe_load((HERE / "instructions.yaml").read_text(encoding="utf-8"))


class Pages:
    """Draws pages.

    Args:
        world: where sentences come from.
        bare: share of the pages without an instruction.
        course: what is drawn, and how often.
    """

    def __init__(self, world: World, bare: float = BARE, course: Course = FIRST) -> None:
        self.course = course
        self.world = world
        self.dice = world.dice
        self.bare = bare
        self.words = world.words

    def page(self, progress: float) -> Page:
        """A page of any look; `progress` from 0 to 1 is how far the ladder of difficulty has gone."""
        course, dice = self.course, self.dice
        look = dice.weighted(course.open("looks", progress))
        if look == "pair":
            return self.pair(dice.weighted(course.open("pairs", progress)))
        if look == "pair_letters":
            return self.pair_letters()
        if look == "single":
            return self.single()
        if look == "word_choice":
            kind = dice.weighted(course.open("words", progress))
            return self.word_choice(kind, self._options(progress, 10))
        if dice.chance(max(course.repeats, 1.0 - 2.5 * max(0.0, progress - course.opening))):
            return self.sentence_choice("repeat", self._options(progress, 6))
        kind = dice.weighted(course.open("sentences", progress))
        return self.sentence_choice(kind, self._options(progress, 16 if dice.chance(course.sixteen) else 6))

    def _options(self, progress: float, most: int) -> int:
        """How many options: two until the opening is over, then more and more."""
        top = min(most, 2 + int(max(0.0, progress - self.course.opening) * self.course.growth))
        return 2 + self.dice.below(top - 1)

    def _choice_pattern(self, kind: str) -> str:
        """The look of a quiz, at times with words that narrow down what is meant but do not say it."""
        narrow = self.dice.chance(0.14 if kind in ("together", "topic", "about") else 0.05)
        if self.course.shared and kind in KINS and self.dice.chance(self.course.shared):
            kind = self.dice.pick(KINS[kind])
        return self._instructed("choice", kind, ("{query} what is right " if narrow else "{query} ") + CHOICE)

    def _instructed(self, look: str, kind: str, pattern: str) -> str:
        if self.dice.chance(self.bare):
            return pattern
        return self.dice.pick(instructions()[look][kind]) + " ? " + pattern

    # --- two statements -----------------------------------------------------------------------------------------

    def two(self, kind: str) -> tuple[Sentence, Sentence, str]:
        """Two sentences and the answer of a kind of question about them: no, maybe or yes."""
        world, dice = self.world, self.dice
        topic, actor = world.topic(), world.actor()
        same_person = dice.chance(0.5 if kind in ("person", "persons") else 0.35)
        other = actor if same_person else world.actor(actor)
        if kind == "feeling":
            levels = (dice.below(5), dice.below(5))
            if dice.chance(0.4):
                levels = (levels[0], levels[0])
            one = world.opinion(topic, actor, levels[0], dice.below(5))
            two = world.opinion(
                topic if dice.chance(0.5) else world.topic(topic),
                other,
                levels[1],
                dice.below(5),
                without=one.nouns,
            )
            gap = abs(levels[0] - levels[1])
            return one, two, "yes" if gap == 0 else "maybe" if gap == 1 else "no"
        one = world.sentence(topic, actor)
        relation = dice.below(3) if kind != "apart" else dice.pick((0, 0, 1, 2))
        if relation == 0:
            two = world.sentence(world.topic(topic), other)
        elif relation == 1:
            two = world.sentence(topic, other, without=one.nouns)
        else:
            shared = dice.pick(one.nouns)
            rest = [noun for noun in one.nouns if noun != shared]
            two = world.sentence(topic, other, shared, rest)
        if kind == "together":
            answer = ("no", "maybe", "yes")[relation]
        elif kind == "apart":
            answer = "yes" if relation == 0 else "no"
        else:
            answer = "yes" if same_person == (kind == "person") else "no"
        return (one, two, answer) if dice.chance(0.5) else (two, one, answer)

    def pair(self, kind: str | None = None) -> Page:
        """A page that looks like `one <X> two`, at times `one ? <X> . two`."""
        kind = kind or self.dice.weighted(self.course.pairs)
        one, two, answer = self.two(kind)
        pattern = "{one} ? <X> . {two}" if self.dice.chance(0.2) else "{one} <X> {two}"
        fields = {"one": one.text, "two": two.text}
        return page(self._instructed("pair", kind, pattern), fields, [], answer, kind)

    def pair_letters(self, kind: str | None = None) -> Page:
        """The same question with no, maybe and yes as lettered options."""
        kind = kind or self.dice.weighted(self.course.pairs)
        one, two, answer = self.two(kind)
        answers = ["no", "maybe", "yes"] if kind in ("together", "feeling") else ["no", "yes"]
        if answer == "maybe" or kind == "together":
            answers = ["no", "maybe", "yes"]
        fields = {"one": one.text, "two": two.text}
        pattern = self._instructed("pair", kind, "{two} ? {one} " + CHOICE.removeprefix("? "))
        return page(pattern, fields, answers, LETTERS[answers.index(answer)], kind)

    # --- lettered quizzes -----------------------------------------------------------------------------------------

    def sentence_choice(self, kind: str | None, n: int) -> Page:
        """A quiz whose `n` options are sentences; among the wrong ones are those that another kind calls right."""
        kind = kind or self.dice.weighted(self.course.sentences)
        world, dice = self.world, self.dice
        topic, actor = world.topic(), world.actor()
        query = world.sentence(topic, actor)
        next_one = lambda who: world.sentence(  # noqa: E731
            topic, who, (shared := dice.pick(query.nouns)), [noun for noun in query.nouns if noun != shared]
        )
        same_topic = lambda who: world.sentence(topic, who, without=query.nouns)  # noqa: E731
        elsewhere = lambda who: world.sentence(world.topic(topic), who)  # noqa: E731
        stranger = lambda: world.actor(actor)  # noqa: E731
        anyone = lambda: actor if dice.chance(0.3) else stranger()  # noqa: E731
        if kind == "together":
            right = next_one(anyone())
            traps = [lambda: elsewhere(actor), lambda: elsewhere(stranger())]
            if self.course.close == 1.0 or dice.chance(self.course.close):
                traps.insert(0, lambda: same_topic(anyone()))
        elif kind == "topic":
            right = same_topic(stranger())
            traps = [lambda: elsewhere(actor), lambda: elsewhere(stranger())]
        elif kind == "person":
            right = elsewhere(actor)
            traps = [
                lambda: same_topic(stranger()),
                lambda: next_one(stranger()),
                lambda: elsewhere(stranger()),
            ]
        elif kind in MEETINGS:  # one option is of either person, the rest of neither
            mate = stranger()
            query = world.meeting(topic, actor, mate)
            place = lambda: topic if dice.chance(0.5) else world.topic(topic)  # noqa: E731
            of = lambda who: world.sentence(place(), who, without=query.nouns)  # noqa: E731
            right, other = (of(actor), mate) if kind == "mover" else (of(mate), actor)
            traps = [lambda: of(other), *[lambda: of(world.actor(actor, mate))] * 14]
        elif kind == "stranger":
            right = dice.pick((elsewhere, same_topic, next_one))(stranger())
            traps = [lambda: elsewhere(actor), lambda: same_topic(actor), lambda: next_one(actor)]
        elif kind == "odd":
            right = elsewhere(anyone())
            traps = [lambda: same_topic(anyone()), lambda: next_one(anyone())]
        else:
            right = query
            traps = [lambda: next_one(anyone()), lambda: elsewhere(actor), lambda: elsewhere(stranger())]
        wrong: list[str] = []
        while len(wrong) < n - 1:
            # One of each trap first; after that what costs nothing to tell from the right one.
            text = (traps[len(wrong)] if len(wrong) < len(traps) else dice.pick(traps))().text
            if text not in (right.text, query.text, *wrong):
                wrong.append(text)
        if n == 2 and len(traps) > 1 and kind not in MEETINGS:
            wrong = [dice.pick(traps)().text]
        options = dice.shuffled([right.text, *wrong])
        text = query.text
        if kind in ("together", "topic", "person", "stranger", *MEETINGS) and dice.chance(0.25):
            text = f"{self._before(query, query.actor if kind in MEETINGS else world.actor())} {text}"
        return page(
            self._choice_pattern(kind), {"query": text}, options, LETTERS[options.index(right.text)], kind
        )

    def _before(self, query: Sentence, actor: str) -> str:
        """A sentence about `actor` that `query` goes on with."""
        return self.world.story(query.topic, actor, query.nouns[0], query.nouns[1:]).text

    def word_choice(self, kind: str | None, n: int) -> Page:
        """A quiz whose options are words: topics, places, persons or the levels of opinions."""
        kind = kind or self.dice.weighted(self.course.words)
        world, dice = self.world, self.dice
        sentence, answer = self._told(kind)
        if kind in ("thing", "human"):
            if dice.chance(0.5) and answer != "maybe":
                answer, options = ("bad" if answer in ("terrible", "bad") else "good"), ["bad", "good"]
            else:
                options = list(self.words.levels)
        elif kind == "who" or kind in MEETINGS:
            known = {sentence.actor, sentence.mate} - {answer, ""}
            rest = [name for name in self.words.names if name != answer and name not in known]
            options = dice.shuffled([answer, *known, *dice.shuffled(rest)][: max(2, n)])
        else:
            known = {sentence.topic, sentence.place} - {""}
            rest = dice.shuffled([place for place in self.words.places if place not in known])
            options = [answer, *sorted(known - {answer}), *rest][: max(2, n)]
            options = dice.shuffled(options)
        text = sentence.text
        if kind in MEETINGS and dice.chance(0.4):  # somebody of it before it
            text = f"{world.story(sentence.topic, sentence.actor).text} {text}"
        elif kind != "who" and dice.chance(0.2):
            more = world.story(sentence.topic, world.actor(), placed=0.3 if kind == "about" else 0.0).text
            text = f"{text} {more}" if dice.chance(0.5) else f"{more} {text}"
        return page(
            self._choice_pattern(kind), {"query": text}, options, LETTERS[options.index(answer)], kind
        )

    # --- a single text --------------------------------------------------------------------------------------------

    def _told(self, kind: str) -> tuple[Sentence, str]:
        world, dice = self.world, self.dice
        if kind in ("thing", "human"):
            sentence = world.opinion(world.topic(), world.actor(), dice.below(5), dice.below(5))
            return sentence, self.words.levels[sentence.thing if kind == "thing" else sentence.person]
        if kind in MEETINGS:
            actor = world.actor()
            sentence = world.meeting(world.topic(), actor, world.actor(actor))
            return sentence, sentence.actor if kind == "mover" else sentence.mate
        if kind == "where":
            sentence = world.story(world.topic(), world.actor(), placed=1.0)
            return sentence, sentence.place
        sentence = world.sentence(world.topic(), world.actor(), opinions=0.25)
        if kind == "about" and sentence.thing < 0 and dice.chance(0.5):
            sentence = world.story(sentence.topic, sentence.actor, placed=1.0)
        return sentence, sentence.topic if kind == "about" else sentence.actor

    def single(self, kind: str | None = None) -> Page:
        """A page that looks like `text <X>`; opinions at times `text This was <X> .`"""
        kind = kind or self.dice.weighted(self.course.singles)
        sentence, answer = self._told(kind)
        text = sentence.text
        if self.dice.chance(0.3):  # another sentence of the same topic before or after it
            more = self.world.story(sentence.topic, sentence.actor, placed=0.0).text
            text = f"{text} {more}" if self.dice.chance(0.5) else f"{more} {text}"
        opinion = kind in ("thing", "human")
        hard = opinion and self.dice.chance(0.25 if kind == "thing" else 0.12)
        pattern = "{text} This was <X> ." if hard else "{text} <X>"
        return page(self._instructed("single", kind, pattern), {"text": text}, [], answer, kind)


def page(pattern: str, fields: dict[str, str], options: list[str], target: str, kind: str) -> Page:
    """A page as `ppt backbone train` reads it (`kind` stays out of the file)."""
    return {"pattern": pattern, "fields": fields, "options": options, "target": target, "kind": kind}


def pages(n: int, seed: int, course: str = "first") -> Iterator[Page]:
    """`n` pages of a course, easy ones first."""
    keys = (
        ("pages",) if course == "first" else ("pages", course)
    )  # the stream that the shipped weights' first course had
    drawn = Pages(World(seed, "text", *keys), course=COURSES[course])
    for number in range(n):
        yield drawn.page(number / n)


def as_text(page: Page) -> str:
    """A page as plain text with the answer in its place."""
    text = page["pattern"]
    lettered = " ".join(f"{LETTERS[i]} . {option} ." for i, option in enumerate(page["options"]))
    for name, value in page["fields"].items():
        text = text.replace("{" + name + "}", value)
    return text.replace("{options}", lettered).replace("<X>", page["target"])


def write_pages(path: Path, n: int, seed: int, course: str = "first") -> None:
    """Write `n` pages as JSON lines, in the order in which a backbone should see them."""
    write_records(path, pages(n, seed, course))


def write_records(path: Path, found: Iterable[Page]) -> None:
    """Write pages as cloze records, which `ppt backbone train` reads."""
    keys = ("pattern", "fields", "options", "target")
    write_jsonl(path, [{key: page[key] for key in keys} for page in found])
