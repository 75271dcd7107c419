"""Which examples a step takes and which process computes what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpora.common.rng import generator
from corpora.formats import CHOICE_FORMATS
from corpora.rendering import Rendered
from corpora.tokenizer import Tokenizer
from pretrain.batching import end_to_end, pack_flat
from pretrain.groups import Batcher, Group, Work, open_groups, share_out
from pretrain.settings import PretrainSettings


class Lengths:
    """A corpus that knows lengths only."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int32)

    def lengths(self, rows: Any, prompt_len: int) -> Any:
        return self._lengths[rows]


def group(index: int, name: str, lengths: list[int]) -> Group:
    rows = range(len(lengths))
    return Group(index, name, cast(Any, Lengths(lengths)), cast(Any, None), rows, np.asarray(rows))


def settings(**changes: Any) -> PretrainSettings:
    values = {"out": "x", "corpora": "x", "backbone": "x", "prompt_len": 10, "batch_tokens": 60}
    return PretrainSettings(**{**values, **changes})


lengths = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(one=lengths, other=lengths, world=st.integers(1, 7))
def test_every_example_counts_once_and_all_processes_get_equally_many_micro_batches(
    one: list[int], other: list[int], world: int
) -> None:
    groups = [group(0, "sentence_pair", one), group(1, "unified", other)]
    picks = [g.held_rows for g in groups]
    shares = [share_out(groups, picks, settings(), rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    counted = [
        pair
        for share in shares
        for work in share
        if work.counts
        for pair in zip(work.groups.tolist(), work.rows.tolist(), strict=True)
    ]
    assert sorted(counted) == [(0, row) for row in range(len(one))] + [(1, row) for row in range(len(other))]


@given(one=lengths, world=st.integers(1, 4))
def test_a_micro_batch_keeps_to_its_tokens_prompts_included(one: list[int], world: int) -> None:
    only = group(0, "unified", one)
    for rank in range(world):
        for work in share_out([only], [only.held_rows], settings(), rank, world):
            assert len(work.rows) == 1 or sum(one[row] + 10 for row in work.rows) <= 60


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 3))
def test_steps_walk_through_every_example_once_an_epoch_in_an_order_of_its_own(
    n: int, batch_size: int, seed: int
) -> None:
    steps = -(-3 * n // batch_size)
    one = group(0, "unified", [1] * n)
    walked = np.concatenate([one.rows_of_step(step, batch_size, seed) for step in range(steps)])
    epochs = [walked[n * epoch : n * (epoch + 1)].tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n > 10:
        assert epochs[0] != epochs[1] != epochs[2]
    late = group(0, "unified", [1] * n)  # a resumed run asks for one step only
    assert (
        late.rows_of_step(steps - 1, batch_size, seed).tolist()
        == walked[(steps - 1) * batch_size :][:batch_size].tolist()
    )


@pytest.mark.parametrize("n", [1, 200, 256, 70_000])
def test_an_epochs_order_is_the_seeds_permutation_whatever_type_holds_it(n: int) -> None:
    one = group(0, "unified", [1] * n)
    expected = generator(7, "pretrain order", "unified", 0).permutation(n)
    found = one.rows_of_step(0, n, 7)
    assert found.dtype == np.int64 and found.tolist() == expected.tolist()


@pytest.fixture(scope="module")
def groups(build_dir: Path, tokenizer: Tokenizer) -> list[Group]:
    return open_groups(settings(corpora=build_dir, eval_examples=10), tokenizer)


def test_held_out_rows_are_of_the_validation_split_and_training_rows_are_all_others(
    groups: list[Group],
    tokenizer: Tokenizer,
) -> None:
    for one in groups:
        assert one.corpus.tokenizer is tokenizer  # loaded once, not once a format
        assert len(one.held_rows) == 10 and set(one.held_rows.tolist()) <= set(one.corpus.split("validation"))
        assert one.train_rows == one.corpus.split("train")
        labels = one.n_labels(one.held_rows).tolist()
        if one.name in CHOICE_FORMATS:
            assert labels == [len(one.corpus.units(row)[1]) for row in one.held_rows.tolist()]
        else:
            assert labels == [len(one.verbalizer)] * 10


@pytest.mark.parametrize("count", ["label", "all"])
@pytest.mark.parametrize("counts", [True, False])
def test_a_batch_is_what_its_examples_give_one_by_one(
    groups: list[Group], tokenizer: Tokenizer, count: Any, counts: bool
) -> None:
    rng = np.random.default_rng(0)
    used = groups[1:] + groups[:1]  # a group's place in the list is not its index
    one = settings(count=count)
    batcher = Batcher(used, one, tokenizer, 3, torch.device("cpu"))
    which = rng.integers(0, len(groups), 40)
    work = Work(which, np.array([rng.integers(0, len(groups[g].corpus)) for g in which]), counts)
    examples = [
        groups[g].corpus.render(row, tokenizer, one.prompt_len)
        for g, row in zip(which.tolist(), work.rows.tolist(), strict=True)
    ]
    for asked in (None, [0] * 40, batcher.clamp(work, 4)):
        labels = [example.label for example in examples] if asked is None else asked
        targets = [
            groups[g].verbalizer.target_ids(label, count == "all")
            for g, label in zip(which.tolist(), labels, strict=True)
        ]
        rendered = Rendered(
            *end_to_end([example.input_ids for example in examples]),
            np.array([example.label for example in examples], np.int64),
        )
        expected = pack_flat(
            rendered, one.prompt_len, which, *end_to_end(targets), np.full(40, 0.3 * counts),
            tokenizer.pad_id, 3, count,
        )  # fmt: skip
        found = batcher.batch(work, 0.3, asked)
        for field in dataclasses.fields(expected):
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            assert ours.dtype == theirs.dtype and bool((ours == theirs).all()), field.name
