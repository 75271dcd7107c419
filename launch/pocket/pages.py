"""Pages of the pocket world that hold abilities in natural form: questions of many kinds that share one look.

Four looks, those of the formats: `one <X> two`, `text <X>`, `query ? A . o . B . o . ? The correct one is <X>` with
sentences or with words as options. Within a look many kinds of question are asked, told apart by an instruction in front;
a tenth of the pages has none, and wrong options are what another kind would call right. So the bare pattern
is ambiguous, and what a prompt can do is to say which kind is meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from launch.pocket.world import HERE, Sentence, World

Page = dict[str, Any]  # {"pattern", "fields", "options", "target", "kind"}
LETTERS = "ABCDEFGHIJKLMNOP"
BARE = 0.12  # share of the pages without an instruction
CHOICE = "? {options} ? The correct one is <X>"
PAIR_KINDS = {"together": 0.34, "apart": 0.26, "person": 0.16, "persons": 0.16, "feeling": 0.08}
SENTENCE_KINDS = {"together": 0.36, "topic": 0.16, "person": 0.2, "odd": 0.28}
WORD_KINDS = {"about": 0.4, "where": 0.2, "who": 0.1, "thing": 0.15, "human": 0.15}
SINGLE_KINDS = {"thing": 0.34, "human": 0.26, "about": 0.2, "where": 0.12, "who": 0.08}
LOOKS = {"pair": 0.34, "sentences": 0.36, "words": 0.12, "single": 0.12, "pair_letters": 0.06}
# The ladder: how far the training has gone when a kind comes in. Comparing two names and pointing at a repeated sentence
# come first and alone until both are learnt; with all kinds from the start, or the others after half the time, neither was.
FIRST = 0.14
LOOKS_FROM = {"single": FIRST, "words": 0.3, "pair_letters": 0.45}
PAIRS_FROM = {"persons": FIRST, "together": 0.17, "apart": 0.28, "feeling": 0.4}
SENTENCES_FROM = {"together": 0.24, "topic": 0.36, "odd": 0.36}
WORDS_FROM = {"where": 0.35, "thing": 0.45, "human": 0.45}


def _open(weights: dict[str, float], since: dict[str, float], progress: float) -> dict[str, float]:
    """The kinds that have come in by now."""
    return {kind: weight for kind, weight in weights.items() if progress >= since.get(kind, 0.0)}


@lru_cache(maxsize=1)
def instructions() -> dict[str, dict[str, list[str]]]:
    """The wordings of `instructions.yaml`: look -> kind -> sentences without their question mark."""
    return yaml.safe_load((HERE / "instructions.yaml").read_text(encoding="utf-8"))


class Pages:
    """Draws pages.

    Args:
        world: where sentences come from.
        bare: share of the pages without an instruction.
    """

    def __init__(self, world: World, bare: float = BARE) -> None:
        self.world = world
        self.dice = world.dice
        self.bare = bare
        self.words = world.words

    def page(self, progress: float) -> Page:
        """A page of any look; `progress` from 0 to 1 is how far the ladder of difficulty has gone."""
        look = self.dice.weighted(_open(LOOKS, LOOKS_FROM, progress))
        if look == "pair":
            return self.pair(self.dice.weighted(_open(PAIR_KINDS, PAIRS_FROM, progress)))
        if look == "pair_letters":
            return self.pair_letters()
        if look == "single":
            return self.single()
        if look == "words":
            kind = self.dice.weighted(_open(WORD_KINDS, WORDS_FROM, progress))
            return self.word_choice(kind, self._options(progress, 10))
        if self.dice.chance(max(0.08, 1.0 - 2.5 * max(0.0, progress - FIRST))):
            return self.sentence_choice("repeat", self._options(progress, 6))
        kind = self.dice.weighted(_open(SENTENCE_KINDS, SENTENCES_FROM, progress))
        return self.sentence_choice(kind, self._options(progress, 16 if self.dice.chance(0.1) else 6))

    def _options(self, progress: float, most: int) -> int:
        """How many options: two at the start, then one more each fourteenth of the way."""
        top = min(most, 2 + int(max(0.0, progress - FIRST) * 14))
        return 2 + self.dice.below(top - 1)

    def _choice_pattern(self, kind: str) -> str:
        """The look of a quiz, at times with words that narrow down what is meant but do not say it."""
        narrow = self.dice.chance(0.14 if kind in ("together", "topic", "about") else 0.05)
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
        kind = kind or self.dice.weighted(PAIR_KINDS)
        one, two, answer = self.two(kind)
        pattern = "{one} ? <X> . {two}" if self.dice.chance(0.2) else "{one} <X> {two}"
        fields = {"one": one.text, "two": two.text}
        return page(self._instructed("pair", kind, pattern), fields, [], answer, kind)

    def pair_letters(self, kind: str | None = None) -> Page:
        """The same question with no, maybe and yes as lettered options."""
        kind = kind or self.dice.weighted(PAIR_KINDS)
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
        kind = kind or self.dice.weighted(SENTENCE_KINDS)
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
            traps = [lambda: same_topic(anyone()), lambda: elsewhere(actor), lambda: elsewhere(stranger())]
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
        if n == 2 and len(traps) > 1:
            wrong = [dice.pick(traps)().text]
        options = dice.shuffled([right.text, *wrong])
        text = query.text
        if kind in ("together", "topic", "person") and dice.chance(0.25):
            text = f"{self._before(query)} {text}"
        return page(
            self._choice_pattern(kind), {"query": text}, options, LETTERS[options.index(right.text)], kind
        )

    def _before(self, query: Sentence) -> str:
        """A sentence that `query` goes on with."""
        return self.world.story(query.topic, self.world.actor(), query.nouns[0], query.nouns[1:]).text

    def word_choice(self, kind: str | None, n: int) -> Page:
        """A quiz whose options are words: topics, places, persons or the levels of opinions."""
        kind = kind or self.dice.weighted(WORD_KINDS)
        world, dice = self.world, self.dice
        sentence, answer = self._told(kind)
        if kind in ("thing", "human"):
            if dice.chance(0.5) and answer != "maybe":
                answer, options = ("bad" if answer in ("terrible", "bad") else "good"), ["bad", "good"]
            else:
                options = list(self.words.levels)
        elif kind == "who":
            options = dice.shuffled(
                [answer, *dice.shuffled([name for name in self.words.names if name != answer])[: n - 1]]
            )
        else:
            known = {sentence.topic, sentence.place} - {""}
            rest = dice.shuffled([place for place in self.words.places if place not in known])
            options = [answer, *sorted(known - {answer}), *rest][: max(2, n)]
            options = dice.shuffled(options)
        text = sentence.text
        if kind != "who" and dice.chance(0.2):
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
        if kind == "where":
            sentence = world.story(world.topic(), world.actor(), placed=1.0)
            return sentence, sentence.place
        sentence = world.sentence(world.topic(), world.actor(), opinions=0.25)
        if kind == "about" and sentence.thing < 0 and dice.chance(0.5):
            sentence = world.story(sentence.topic, sentence.actor, placed=1.0)
        return sentence, sentence.topic if kind == "about" else sentence.actor

    def single(self, kind: str | None = None) -> Page:
        """A page that looks like `text <X>`; opinions at times `text This was <X> .`"""
        kind = kind or self.dice.weighted(SINGLE_KINDS)
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


def pages(n: int, seed: int) -> Iterator[Page]:
    """`n` pages, easy ones first."""
    drawn = Pages(World(seed, "text", "pages"))
    for number in range(n):
        yield drawn.page(number / n)


def as_text(page: Page) -> str:
    """A page as plain text with the answer in its place."""
    text = page["pattern"]
    lettered = " ".join(f"{LETTERS[i]} . {option} ." for i, option in enumerate(page["options"]))
    for name, value in page["fields"].items():
        text = text.replace("{" + name + "}", value)
    return text.replace("{options}", lettered).replace("<X>", page["target"])


def write_pages(path: Path, n: int, seed: int) -> None:
    """Write `n` pages as JSON lines, in the order in which a backbone should see them."""
    from corpora.common.files import write_text_atomic

    keys = ("pattern", "fields", "options", "target")
    lines = [json.dumps({key: page[key] for key in keys}) for page in pages(n, seed)]
    write_text_atomic(path, "\n".join(lines) + "\n")
