"""Which layers to edit, by one figure of each: as many of the best as asked for, or as many as stand apart.

**By loss** (AlignEZ v1, arXiv 2406.03642): with the losses in ascending order l_1 <= l_2 <= ... and M_k the mean of the
first k, the layers up to the largest jump of that running mean are edited, that is the first k where

    M_{k+1} - M_k = (k M_k + l_{k+1}) / (k + 1) - M_k = (l_{k+1} - M_k) / (k + 1)          is largest.

The factor 1 / (k + 1) makes a late jump count less than an early one of the same height.

**By score**: with the scores in descending order, the layers up to the largest drop s_k - s_{k+1}.

Of equal jumps or drops the first counts, which edits fewer layers; where all figures are equal no layer stands apart,
and all are edited. Of layers with equal figures the earlier one comes first.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.methods.protocol import TopLayers
    from alignez_bake.site import Site


class Choice(NamedTuple):
    """The sites to edit, and why each of the others is left out."""

    sites: frozenset[Site]
    left_out: str


def smallest_losses(losses: Mapping[Site, float], top: TopLayers | None) -> Choice:
    """The sites with the smallest losses.

    Args:
        losses: by site, at least one.
        top: how many; `auto`: up to the largest jump of the running mean; None, or more than there are: all.
    """
    ranked = sorted(losses, key=lambda site: losses[site])
    if top != "auto":
        return Choice(frozenset(ranked[:top]), f"its CCS loss is not among the {top} smallest")
    jumps = []
    mean = losses[ranked[0]]
    for count, site in enumerate(ranked[1:], start=1):
        jumps.append((losses[site] - mean) / (count + 1))
        mean += jumps[-1]
    left_out = "its CCS loss lies above the largest jump of the running mean"
    return Choice(frozenset(ranked[: _up_to_largest(jumps)]), left_out)


def largest_scores(scores: Mapping[Site, float], top: TopLayers | None) -> Choice:
    """The sites with the largest scores.

    Args:
        scores: by site, at least one.
        top: how many; `auto`: up to the largest drop; None, or more than there are: all.
    """
    ranked = sorted(scores, key=lambda site: -scores[site])
    if top != "auto":
        return Choice(frozenset(ranked[:top]), f"its score is not among the {top} largest")
    drops = [scores[better] - scores[worse] for better, worse in pairwise(ranked)]
    return Choice(frozenset(ranked[: _up_to_largest(drops)]), "its score lies below the largest drop")


def _up_to_largest(steps: Sequence[float]) -> int | None:
    """How many come before the first of the largest steps; None, which is all, where there is no step."""
    largest = max(steps, default=0.0)
    return steps.index(largest) + 1 if largest > 0.0 else None
