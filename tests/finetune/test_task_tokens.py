"""A task under a vocabulary."""

from __future__ import annotations

from corpora.formats import Verbalizer
from corpora.tokenizer import Tokenizer
from finetune.task import Task
from finetune.task_tokens import vocabulary_problems


def test_words_of_very_unlike_lengths_are_a_warning(tokenizer: Tokenizer) -> None:
    words = ("boatman", "good")
    n, other = (len(ids) for ids in Verbalizer(tokenizer, words).ids)
    assert n > other + 1
    for verbalizer, expected in ((words, [f'label word "boatman" has {n} tokens and "good" {other}']), (("noon", "good"), [])):  # fmt: skip
        task = Task(name="mood", format="single_text", verbalizer=verbalizer, pattern="{text} <X>")
        found = list(vocabulary_problems(task, {"first": ("plain",)}, None, tokenizer, 4))
        assert [one.text.partition(":")[0] for one in found] == expected
        assert all((one.level, one.kind) == ("warning", "uneven_words") for one in found)
