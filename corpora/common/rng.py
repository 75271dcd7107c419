"""Random streams named by what they are for, so that any worker draws the same numbers."""

from __future__ import annotations

import hashlib

import numpy as np


def derived_seed(seed: int, *keys: str | int) -> int:
    """A 64-bit seed made of `seed` and `keys` (SHA-256): different keys, independent streams."""
    text = "\x1f".join(str(part) for part in (seed, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """A generator that depends on `seed` and `keys` alone.

    Args:
        seed: the run's seed.
        keys: what the stream is for, for example `"sentence_pair", block`.

    Returns:
        A counter-based generator (Philox): the same on every machine and for any number of workers.
    """
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, *keys)))


def advanced(rng: np.random.Generator, count: int) -> np.random.Generator:
    """Move a new generator of `generator` behind its first `count` doubles, without drawing them."""
    assert isinstance(rng.bit_generator, np.random.Philox)
    rng.bit_generator.advance(count // 4)  # each step of the counter makes four
    rng.random(count % 4)
    return rng
