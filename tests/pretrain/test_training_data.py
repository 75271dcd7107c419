"""What backbones learn from: cloze records, windows of text, the mixture of objectives."""

import numpy as np
import pytest
import torch

from corpora.common.errors import UserError
from corpora.formats import Pattern
from pretrain.training_data import OBJECTIVES, Mixture, MixtureState, make_batch
from pretrain.training_sources import read_cloze, read_text, text_sources, windows

PATTERN = "{q} ? {options} ? The correct one is <X>"


def test_cloze_ids_are_those_of_the_tasks(tokenizer, cloze_file):
    source = read_cloze([str(cloze_file)], tokenizer, 48, False)
    q, mill, bee = tokenizer.encode(["the boat", "a mill", "a bee"])
    inputs, targets = source.example(0, None)
    expected = Pattern.parse(PATTERN).render(tokenizer, {"q": q}, [mill, bee], max_tokens=48)
    assert inputs.tolist() == expected.tolist()
    assert targets.tolist() == [
        tokenizer.sentinel(0),
        tokenizer.letters[1],
        tokenizer.sentinel(1),
    ]  # the bare letter
    _, targets = source.example(2, None)
    assert targets.tolist() == [tokenizer.sentinel(0), *tokenizer.word_ids("yes"), tokenizer.sentinel(1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"pattern": "{s} <X>"}', "line 2: expected a record"),
        (
            '{"pattern": "{s} <X>", "fields": {"s": 3}, "target": "yes"}',
            "line 2: fields and options must be text",
        ),
        ('{"pattern": "{s} no mask", "fields": {"s": "x"}, "target": "yes"}', "line 2: "),
    ],
)
def test_a_bad_cloze_record_is_named_with_its_line(tokenizer, tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"pattern": "{s} <X>", "fields": {"s": "the boat"}, "target": "yes"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_cloze([str(path)], tokenizer, 48, False)


def test_each_objective_has_its_share_of_the_tokens_and_every_record_its_turn(
    tokenizer, text_file, cloze_file
):
    text = read_text([str(text_file)], tokenizer)
    sources = text_sources(text, np.arange(len(text.doc_offsets) - 1), tokenizer, 48, 0.15, 3.0)
    sources["cloze"] = read_cloze([str(cloze_file)], tokenizer, 48, False)
    mixture = Mixture(sources, {"span": 0.5, "prefix": 0.2, "cloze": 0.3}, 200, seed=0)
    seen = dict.fromkeys(OBJECTIVES, 0)
    cloze = []
    for examples, state in mixture.iterate(MixtureState()):
        for kind, inputs, targets in examples:
            name = OBJECTIVES[kind]
            marks = int((inputs >= tokenizer.size - 100).sum())
            seen[name] += len(inputs) + (
                0 if name == "cloze" else len(targets) - (2 * marks + 1 if marks else 0)
            )
            if name == "cloze":
                cloze.append(inputs.tolist())
        if state.step == 200:
            break
    total = sum(seen.values())
    assert {name: round(count / total, 2) for name, count in seen.items()} == {
        "span": 0.5,
        "prefix": 0.2,
        "cloze": 0.3,
    }
    records = [sources["cloze"].example(i, None)[0].tolist() for i in range(3)]
    assert cloze[:7] == [*records, *records, records[0]]  # file order, again from the start


def test_resuming_the_mixture_gives_the_same_examples(tokenizer, text_file):
    text = read_text([str(text_file)], tokenizer)
    sources = text_sources(text, np.arange(30), tokenizer, 48, 0.15, 3.0)

    def draw(state, count):
        steps = Mixture(sources, {"span": 0.5, "prefix": 0.5}, 500, seed=0).iterate(state)
        return [next(steps) for _ in range(count)]

    every = draw(MixtureState(), 60)  # more than one epoch
    assert every[-1][1].epoch["span"] >= 1
    again = draw(every[29][1], 30)
    for (one, _), (two, _) in zip(every[30:], again, strict=True):
        assert [(k, a.tolist(), b.tolist()) for k, a, b in one] == [
            (k, a.tolist(), b.tolist()) for k, a, b in two
        ]


def test_windows_cover_each_document_once():
    offsets = np.array([0, 100, 105, 160])
    table = windows(offsets, np.array([0, 1, 2]), 30)
    assert table[:, 1].max() <= 30
    covered = sorted(token for start, length in table for token in range(start, start + length))
    assert covered == [*range(100), *range(105, 160)]  # five tokens are too few to learn from


def test_sentinels_are_matched_with_the_first_token_they_hide():
    span = (0, np.array([5, 1099, 6, 1098]), np.array([1099, 7, 8, 1098, 9, 1097]))
    cloze = (2, np.array([4, 1099]), np.array([1099, 3, 1098]))
    prefix = (1, np.array([11]), np.array([12, 13]))
    batch = make_batch([span, cloze, prefix], 1000, 0, torch.device("cpu"))
    assert batch.input_ids_N.tolist() == [11, 4, 1099, 5, 1099, 6, 1098]  # shortest first
    assert batch.decoder_ids_M.tolist() == [0, 12, 0, 1099, 3, 0, 1099, 7, 8, 1098, 9]
    assert batch.sentinels_S.tolist() == [2, 4, 6]
    assert batch.sentinel_targets_S.tolist() == [3, 7, 9]
    assert batch.target_ids_M[batch.answers_A].tolist() == [3]
