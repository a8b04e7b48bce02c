"""Objectives that ask for opposite things: refused where their words say so, noted where their edits do.

Two objectives whose personas have the same words are one objective under two names, and one with its words swapped is
its opposite. With dials that pull such a pair apart the sum is a small rest of two edits, whichever way they are
fitted, so it is refused before anything runs. Other words may mean the opposite too; that shows in the edits alone, as
a cosine near -1 at the dials, and is said then.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.interference.geometry import overlaps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.interference.geometry import Overlap
    from alignez_bake.prompts.objective import Objective

OPPOSITE_COSINE: Final = -0.9
"""At or below it two edits cancel: of two of one size less than a quarter is left of what they do apart."""


def check_contradictions(objectives: Sequence[Objective], weights: Mapping[str, float]) -> None:
    """Refuse objectives that have the same two personas and dials that pull them apart.

    Args:
        objectives: what is asked for.
        weights: dial of each; 1 where there is none.

    Raises:
        BadInputError: the same words with dials of opposite signs, or words swapped with dials of one sign.
    """
    for one, other in combinations(objectives, 2):
        ours, theirs = _words(one), _words(other)
        dials = weights.get(one.name, 1.0), weights.get(other.name, 1.0)
        together = dials[0] * dials[1]
        if ours == theirs and together < 0:
            raise BadInputError(
                f"objectives {one.name!r} and {other.name!r} are the same (good {one.good!r}, bad {one.bad!r}) and "
                f"their dials {dials[0]:g} and {dials[1]:g} pull apart: ask for one of them alone"
            )
        if ours == theirs[::-1] and together > 0:
            raise BadInputError(
                f"objectives {one.name!r} and {other.name!r} contradict each other: what is good in one "
                f"({one.good!r}) is bad in the other, and their dials {dials[0]:g} and {dials[1]:g} have the same "
                "sign: ask for one of them alone"
            )


def opposition_notes(plan: EditPlan, found: Sequence[Overlap] | None = None) -> tuple[str, ...]:
    """A sentence for each pair of objectives whose edits cancel at the plan's dials.

    Args:
        plan: edits with dials.
        found: its `overlaps`, where they are known.
    """
    return tuple(
        f"objectives {overlap.objectives[0]!r} and {overlap.objectives[1]!r} pull apart at their dials: the cosine of "
        f"their edits is {overlap.at_dials:.2f}, and {overlap.kept_at_dials:.0%} of the two is left of their sum"
        for overlap in (overlaps(plan) if found is None else found)
        if overlap.at_dials is not None and overlap.kept_at_dials is not None and overlap.at_dials <= OPPOSITE_COSINE
    )


def _words(objective: Objective) -> tuple[str, str]:
    good, bad = (" ".join(objective.words(side).casefold().split()) for side in ("good", "bad"))
    return good, bad
