"""The pooled sign filter: which directions of paired differences agree in sign over the pairs, beyond chance.

AlignEZ (arXiv 2406.03642) filters directions by sign for each query. Weights cannot ask the query, so here one test
over all pairs decides once. With D_i = good_i - bad_i [d], i = 1..m, and v a right singular vector of D, turned so
that mean(D)·v >= 0, let

    n = #{ i : D_i·v > 0 }

v is kept if n >= c, where c is the smallest count with 2 · P(Bin(m, 1/2) >= c) <= α / k, k the number of directions
that are tested together (Bonferroni) and α = 0.05.

The test is exact although v was found from the same D. Suppose that v has nothing to do with good and bad: then the
two answers of a pair could be swapped, which turns the sign of D_i, each pair on its own with probability 1/2. Neither
DᵀD = Σ D_i D_iᵀ nor the filter of cosines notices, so the right singular vectors stay, and the signs of D_i·v are m
fair coins. The factor 2 pays for the turn towards the mean. So a layer where no direction means anything keeps one
with probability at most α. A direction whose mean is positive but which most pairs oppose (a few large differences
outvote the many) is dropped as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# α: of the layers where nothing is to be found, at most this share keeps a direction.
LEVEL: Final = 0.05
# With fewer pairs even full agreement is within chance: 2 · 2⁻⁵ > 0.05 >= 2 · 2⁻⁶. A test holds the two together.
FEWEST_TESTED: Final = 6


class Agreement(NamedTuple):
    """What the filter found for k directions.

    Attributes:
        agreeing: n of each direction, int64 [k].
        pairs: m.
        needed: c, or None where even all m pairs would not be beyond chance.
    """

    agreeing: NDArray[np.int64]
    pairs: int
    needed: int | None

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which directions pass, [k]."""
        if self.needed is None:
            return np.zeros(self.agreeing.shape, dtype=np.bool_)
        passes: NDArray[np.bool_] = self.agreeing >= self.needed
        return passes

    def why_dropped(self) -> str:
        """How many directions were dropped, and by which bound."""
        share = f"{np.count_nonzero(~self.kept)} of {self.agreeing.size} directions"
        if self.needed is None:
            return f"{share} dropped: {self.pairs} pairs are too few to tell any of so many from chance"
        return f"{share} dropped: fewer than {self.needed} of {self.pairs} pairs on one side"


def sign_agreement(differences: NDArray[np.float64], basis: NDArray[np.float64]) -> Agreement:
    """Test directions that are turned towards the mean difference.

    Args:
        differences: D [m, d].
        basis: right singular vectors of D, [d, k] with k >= 1, each with mean(D)·v >= 0.
    """
    agreeing = np.count_nonzero(differences @ basis > 0.0, axis=0)
    pairs = differences.shape[0]
    return Agreement(agreeing, pairs, fewest_agreeing(pairs, LEVEL / basis.shape[1]))


def fewest_agreeing(pairs: int, level: float) -> int | None:
    """The smallest c with 2 · P(Bin(pairs, 1/2) >= c) <= level; None if there is none.

    The tail is summed in whole numbers, from c = pairs downwards, so it is exact for any number of pairs.
    """
    ways, tail, found = 1, 0, None
    for count in range(pairs, -1, -1):
        tail += ways
        if 2 * tail / 2**pairs > level:
            break
        found = count
        ways = ways * count // (pairs - count + 1)
    return found
