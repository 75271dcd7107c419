"""Labelled sets of the pocket world: two tasks a format, and star reviews for the labeller.

The tasks are kin to what their format's prompt is pre-trained on (next-sentence prediction and selection, opinions), but not the
same: another number of labels, other traps, longer texts. Their sentences belong to a side of the world that no training
text is drawn from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.pocket.world import HERE, Sentence, World, write_jsonl

Row = dict[str, Any]
TASK_FILES = HERE / "tasks"
DEMO_TASKS = ("link", "sequel", "stars", "names10")  # one each of pair, choice, single text, ten labels
ALL_TASKS = ("link", "related", "sequel", "hero", "stars", "verdict", "names10", "topics10")
TEN = ("river", "garden", "kitchen", "station", "school", "farm", "theatre", "harbour", "forest", "market")


def _in_order(world: World, one: Sentence, two: Sentence) -> dict[str, str]:
    one, two = (one, two) if world.dice.chance(0.5) else (two, one)
    return {"one": one.text, "two": two.text}


def related(world: World, number: int) -> Row:
    """Do two statements have one topic? The person is the same in half of either."""
    same = number % 2
    topic, actor = world.topic(), world.actor()
    one = world.sentence(topic, actor)
    two = world.sentence(
        topic if same else world.topic(topic),
        actor if world.dice.chance(0.5) else world.actor(actor),
        without=one.nouns,
    )
    return {**_in_order(world, one, two), "label": ("no", "yes")[same]}


def link(world: World, number: int) -> Row:
    """How close are two statements: one topic and person (yes), one topic (maybe), neither or the person alone (no)?"""
    shared = number % 3
    topic, actor = world.topic(), world.actor()
    one = world.sentence(topic, actor)
    same_actor = shared == 2 or (shared == 0 and world.dice.chance(0.35))
    two = world.sentence(
        topic if shared else world.topic(topic),
        actor if same_actor else world.actor(actor),
        without=one.nouns,
    )
    return {**_in_order(world, one, two), "label": ("no", "maybe", "yes")[shared]}


def sequel(world: World, number: int) -> Row:
    """Which of four sentences goes on with a text of two? It has the person met last; a wrong one has the first, two have neither."""
    topic, dice = world.topic(), world.dice
    actor, mate, *strangers = dice.shuffled(world.words.names)
    first = world.story(topic, actor)
    last = world.meeting(topic, actor, mate, first.nouns)
    used = [*first.nouns, *last.nouns]
    right = world.sentence(topic, mate, without=used)
    wrong = [
        world.sentence(topic, actor, without=used),
        world.sentence(topic, strangers[0], without=used),
        world.sentence(world.topic(topic), strangers[1]),
    ]
    return _choice(world, f"{first.text} {last.text}", right, wrong, number % 4)


def hero(world: World, number: int) -> Row:
    """Which of five sentences is about the person of the text? It has another topic; two wrong ones have the text's."""
    topic, actor = world.topic(), world.actor()
    text = world.sentence(topic, actor)
    right = world.sentence(world.topic(topic), actor)
    strangers = world.dice.shuffled([name for name in world.words.names if name != actor])
    wrong = [
        world.sentence(topic if place < 2 else world.topic(topic), strangers[place], without=text.nouns)
        for place in range(4)
    ]
    return _choice(world, text.text, right, wrong, number % 5)


def _choice(world: World, text: str, right: Sentence, wrong: list[Sentence], place: int) -> Row:
    options = [sentence.text for sentence in world.dice.shuffled(wrong)]
    options.insert(place, right.text)
    return {"text": text, "options": options, "label": place}


def _review(world: World, thing: int, person: int) -> str:
    """An opinion with a plain sentence of the same topic before or after it."""
    topic, actor = world.topic(), world.actor()
    opinion = world.opinion(topic, actor, thing, person)
    plain = world.story(topic, actor if world.dice.chance(0.5) else world.actor(), placed=0.0)
    return f"{opinion.text} {plain.text}" if world.dice.chance(0.5) else f"{plain.text} {opinion.text}"


def verdict(world: World, number: int) -> Row:
    """Is the thing good or bad? Mostly the person is the opposite."""
    good = number % 2
    thing = world.dice.pick((3, 4) if good else (0, 1))
    against = world.dice.chance(0.7)
    person = world.dice.pick((3, 4) if bool(good) != against else (0, 1))
    return {"text": _review(world, thing, person), "label": ("bad", "good")[good]}


def stars(world: World, number: int) -> Row:
    """How good is the thing, in five steps?"""
    level = number % 5
    person = world.dice.other(range(5), level) if world.dice.chance(0.7) else level
    return {"text": _review(world, level, person), "label": world.words.levels[level]}


def names10(world: World, number: int) -> Row:
    """Whom of ten persons does a text of two sentences end with? It begins with another of the ten."""
    ten = world.words.names[:10]
    mate, topic = ten[number % 10], world.topic()
    actor = world.dice.other(ten, mate)
    one = world.sentence(topic, actor)
    two = world.meeting(topic, actor, mate, one.nouns)
    return {"text": f"{one.text} {two.text}", "label": mate}


def topics10(world: World, number: int) -> Row:
    """What is a text about, of ten topics? In most, another of them stands in it as a place."""
    topic = TEN[number % len(TEN)]
    return {"text": world.story(topic, world.actor(), placed=0.6, places=TEN).text, "label": topic}


MAKERS: dict[str, Callable[[World, int], Row]] = {
    "related": related, "link": link, "sequel": sequel, "hero": hero,
    "verdict": verdict, "stars": stars, "names10": names10, "topics10": topics10,
}  # fmt: skip


def rows(task: str, n: int, seed: int, side: str) -> list[Row]:
    """`n` different rows of a task, labels evenly, in an order drawn from the seed."""
    world = World(seed, side, "task", task)
    found: dict[str, Row] = {}
    number = 0
    while len(found) < n:
        row = MAKERS[task](world, number)
        key = json.dumps({name: value for name, value in row.items() if name not in ("label", "options")})
        if key not in found:
            found[key] = row
            number += 1
    return world.dice.shuffled(list(found.values()))


def write_tasks(folder: Path, names: tuple[str, ...], seed: int, side: str, train: int, test: int) -> None:
    """Write `<folder>/<task>/train.jsonl` and `test.jsonl` for each task, no text in both."""
    for name in names:
        drawn = rows(name, train + test, seed, side)
        write_jsonl(folder / name / "train.jsonl", drawn[:train])
        write_jsonl(folder / name / "test.jsonl", drawn[train:])


def write_reviews(path: Path, n: int, seed: int) -> None:
    """Write `n` reviews with one to five stars: the stars are for the thing, whatever is said of the person."""
    world = World(seed, "text", "reviews")
    records = []
    for number in range(n):
        level = number % 5
        if world.dice.chance(0.3):
            text = _review(world, level, world.dice.below(5))
        else:
            text = world.opinion(world.topic(), world.actor(), level, world.dice.below(5)).text
        records.append({"text": text, "label": level, "stars": level + 1})
    write_jsonl(path, world.dice.shuffled(records))
