"""All that is said of a plan's objectives together: JSON for its provenance, and sentences for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from alignez_bake.interference.contradictions import opposition_notes
from alignez_bake.interference.effects import measured_effects
from alignez_bake.interference.geometry import overlaps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.capture.sequences import TokenisedPair
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.interference.effects import Effects
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress

NOTED_SHARE: Final = 0.2
"""A dial that moves another objective's margin by so much of what that one's own dial does is named."""


class Interference(NamedTuple):
    """What `interference_of` found.

    Attributes:
        record: JSON values, for the provenance's key `interference`.
        notes: sentences that must stand beside the edits.
    """

    record: dict[str, Any]
    notes: tuple[str, ...]


def interference_of(
    lm: LanguageModel,
    plan: EditPlan,
    pairs: Mapping[str, Sequence[TokenisedPair]],
    *,
    joint: bool,
    batch_size: int,
    progress: Progress,
) -> Interference | None:
    """Geometry and measured effects of a plan's objectives; None where it has fewer than two.

    Args:
        lm: the base.
        plan: edits with dials.
        pairs: of each objective, with its own personas.
        joint: whether the objectives were fitted together.
        batch_size: sequences that run together.
        progress: counts sequences.
    """
    if len(plan.objectives) < 2:
        return None
    found = overlaps(plan)
    effects = measured_effects(lm, plan, pairs, batch_size=batch_size, progress=progress)
    record = {
        "fit": "joint" if joint else "separate",
        "overlaps": [overlap.to_json() for overlap in found],
        "effects": effects.to_json(),
    }
    return Interference(record, (*opposition_notes(plan, found), *_effect_notes(effects, joint=joint)))


def _effect_notes(effects: Effects, *, joint: bool) -> tuple[str, ...]:
    advice = "" if joint else "; --joint fits the objectives together, which lowers that"
    return tuple(
        f"the dial of {dial!r} moves the margin of {margin!r} by {share:.0%} of what that one's own dial does{advice}"
        for dial, margin, share in effects.cross()
        if abs(share) >= NOTED_SHARE
    )
