"""Micro-batches side by side on a CPU's threads, one after the other elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pretrain.side_by_side import FEWEST_TOKENS, MOST, by_micro_batch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_each_micro_batch_is_computed_in_a_thread_with_its_part_of_the_threads() -> None:
    together = threading.Barrier(4, timeout=60)  # only four at a time pass it

    def work(group: np.ndarray) -> tuple[int, int]:
        together.wait()
        return int(group.sum()), torch.get_num_threads()

    lengths = [FEWEST_TOKENS] * 8
    found = by_micro_batch(work, lengths, 4 * FEWEST_TOKENS, CPU)
    assert len(found) == 8
    assert sorted(np.concatenate([group for group, _ in found]).tolist()) == list(range(8))
    assert all(result == (int(group.sum()), 1) for group, result in found)
    assert torch.get_num_threads() == 4  # here, and in threads that begin later
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


@pytest.mark.parametrize(
    ("threads", "tokens", "device", "lanes"),
    [
        (4, 4 * FEWEST_TOKENS, "cpu", 4),
        (4, 3 * FEWEST_TOKENS, "cpu", 3),
        (4, FEWEST_TOKENS, "cpu", 1),
        (1, 9 * FEWEST_TOKENS, "cpu", 1),
        (64, 99 * FEWEST_TOKENS, "cpu", MOST),
        (4, 9 * FEWEST_TOKENS, "meta", 1),
    ],
)
def test_what_is_small_or_on_another_device_is_computed_here(
    threads: int, tokens: int, device: str, lanes: int
) -> None:
    torch.set_num_threads(threads)
    seen: set[str] = set()

    def work(group: np.ndarray) -> int:
        seen.add(threading.current_thread().name)
        return len(group)

    lengths = [64] * (tokens // 64)
    found = by_micro_batch(work, lengths, 10**6, torch.device(device))
    assert len(found) == lanes
    assert (seen == {threading.current_thread().name}) == (lanes == 1)
    assert max(n for _, n in found) - min(n for _, n in found) <= 1


def test_all_that_are_under_way_stay_within_the_budget() -> None:
    lengths = [100] * 200
    found = by_micro_batch(lambda group: 100 * len(group), lengths, 8000, CPU)
    assert max(tokens for _, tokens in found) <= 2000


@pytest.mark.parametrize("grad", [True, False])
def test_threads_record_gradients_where_the_caller_does(grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        found = by_micro_batch(lambda _: torch.is_grad_enabled(), [FEWEST_TOKENS] * 4, 10**6, CPU)
    assert [enabled for _, enabled in found] == [grad] * 4


def test_what_a_micro_batch_raises_is_raised_here() -> None:
    def work(group: np.ndarray) -> None:
        if 3 in group:
            raise ArithmeticError("of the fourth")

    with pytest.raises(ArithmeticError, match="of the fourth"):
        by_micro_batch(work, [FEWEST_TOKENS] * 4, 10**6, CPU)
