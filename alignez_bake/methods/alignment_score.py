"""How well a layer's directions tell good from bad, as one figure that compares layers.

AlignEZ (arXiv 2406.03642) edits the layers with the largest alignment score, chosen for each query. Here the score is
one for all queries. With D_i = good_i - bad_i [d] of the m pairs and V [d, k] the directions that are kept:

    score = mean over i != j of <VᵀD_i, VᵀD_j>  /  mean over i of ‖D_i‖²

that is, how much of one pair's difference foretells another's. It is 1 where all differences are the same and lie in
V, and 0 on average where the labels good and bad are exchangeable (then <D_i, D_j> has either sign alike). It has no
unit, so layers of any scale compare, and it does not grow because a layer has few pairs, as the plain
‖mean(VᵀD)‖² / mean ‖D‖² does, which is 1/m by chance. Without the double sum:

    Σ_{i != j} <VᵀD_i, VᵀD_j> = ‖Σ VᵀD_i‖² - Σ ‖VᵀD_i‖²
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def alignment_score(differences: NDArray[np.float64], basis: NDArray[np.float64]) -> float:
    """The score of the module docstring, within [-1/(m - 1), 1].

    Args:
        differences: D [m, d] with m >= 2, not all zero.
        basis: V [d, k], orthonormal columns.
    """
    projected = differences @ basis
    between = np.square(projected.sum(axis=0)).sum() - np.square(projected).sum()
    return float(between / ((len(differences) - 1) * np.square(differences).sum()))
