"""Which tokens of a capture are kept where there are more than are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Int64Array = NDArray[np.int64]


class BatchChoice(NamedTuple):
    """What is kept of one batch.

    Attributes:
        rows: int64, places within the rows of the batch; None: all of them.
        places: int64, as many, the number of each among all that are kept, in the order of the pairs.
    """

    rows: Int64Array | None
    places: Int64Array


class TokenChoice:
    """An even sample of the tokens of all pairs.

    The T tokens of all pairs in a row are cut into N parts of the same length, within one token, and one token is drawn
    from each. So every pair, and every stretch of a pair, gives its share, N / T of its tokens within one of them at
    either end, and the moments of the sample are N / T of those of all tokens in expectation: the penalty of a ridge is
    relative to them and means the same.

    Args:
        tails: how many tokens each pair has.
        most: N, at least 1; None: all tokens.
        seed: of the draws.
    """

    def __init__(self, tails: Sequence[int], most: int | None, seed: int) -> None:
        """Draw the tokens."""
        self._ends = np.concatenate([[0], np.cumsum(tails, dtype=np.int64)])
        self.read = int(self._ends[-1])
        """Tokens of all pairs."""
        self.count = self.read if most is None else min(self.read, most)
        """Tokens that are kept."""
        self._kept: Int64Array | None = None
        if self.count < self.read:
            edges = np.arange(self.count + 1, dtype=np.int64) * self.read // self.count
            self._kept = np.random.default_rng(seed).integers(edges[:-1], edges[1:])

    def of_batch(self, batch: Sequence[int]) -> BatchChoice:
        """What is kept of the pairs of these numbers, whose rows stand one pair after the other."""
        rows, places, before = [], [], 0
        for pair in batch:
            first, last = self._ends[pair], self._ends[pair + 1]
            if self._kept is None:
                places.append(np.arange(first, last))
            else:
                low, high = np.searchsorted(self._kept, (first, last))
                places.append(np.arange(low, high))
                rows.append(self._kept[low:high] - first + before)
            before += last - first
        return BatchChoice(np.concatenate(rows) if rows else None, np.concatenate(places))
