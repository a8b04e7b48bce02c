"""Hashes that are made part by part, by several threads, are those of all bytes; and nobody waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from alignez_bake.integrity import leaves
from alignez_bake.integrity.hashing import ALGORITHMS, new_hasher
from alignez_bake.streaming.marks import new_marker

LEAF = 4096
PARTS = np.random.default_rng(0).integers(0, 256, (9, LEAF)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _small_leaves(monkeypatch):
    monkeypatch.setattr(leaves, "LEAF_BYTES", LEAF)


def of_bytes(algorithm, parts):
    hasher = new_hasher(algorithm)
    hasher.update(parts.tobytes())
    return hasher.hexdigest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parts_that_are_marked_side_by_side(algorithm):
    """Two streams, one backwards: as many threads as parts, so that each can wait for its turn."""
    marker = new_marker(algorithm)
    with ThreadPoolExecutor(2 * len(PARTS)) as pool:
        one = [pool.submit(marker.mark, "one", turn, PARTS[turn]) for turn in reversed(range(len(PARTS)))][::-1]
        two = [pool.submit(marker.mark, ("two", 2), turn, PARTS[-1 - turn]) for turn in range(len(PARTS))]
    for futures, parts in ((one, PARTS), (two, PARTS[::-1])):
        tally = marker.tally()
        for future in futures:
            tally.add(future.result(), LEAF)
        assert tally.hexdigest() == of_bytes(algorithm, parts)
        for count in (0, 1, 5, len(PARTS)):
            assert tally.hexdigest(count) == of_bytes(algorithm, parts[:count])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_mark_that_is_known_is_that_of_the_bytes(algorithm):
    marker, tally = new_marker(algorithm), new_marker(algorithm).tally()
    known = marker.mark("file", 0, PARTS[0])
    tally.add(marker.mark("tensor", 0, PARTS[0], known=known), LEAF)
    assert tally.hexdigest() == of_bytes(algorithm, PARTS[:1])


def test_nothing_has_the_hash_of_nothing():
    for algorithm in ALGORITHMS:
        assert new_marker(algorithm).tally().hexdigest() == new_hasher(algorithm).hexdigest()


def test_who_waits_for_a_part_that_failed_is_let_go():
    marker, waiting = new_marker("sha256"), threading.Event()

    def late():
        waiting.set()
        marker.mark("file", 1, PARTS[1])

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(late)
        assert waiting.wait(timeout=20)
        marker.abort()
        with pytest.raises(RuntimeError, match="a part before this one failed"):
            future.result(timeout=20)
