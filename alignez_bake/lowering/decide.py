"""Which way each edit takes into an artefact: a value with a reason, never a silent choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.slot import Slot, find_slot

if TYPE_CHECKING:
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan, Group
    from alignez_bake.model_folder import ModelFolder

Route = Literal["fold", "rehome", "insert", "refuse"]


@dataclass(frozen=True)
class Refusal:
    """Why an edit cannot go into an artefact, and what can be done instead."""

    reason: str


class Target(Protocol):
    """What an artefact can carry; every exporter is one."""

    name: str

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the artefact can carry the edit at this slot."""
        ...


@dataclass(frozen=True)
class Decision:
    """The way of one edit.

    Attributes:
        index: place of the edit in the plan.
        edit: the edit.
        route: `fold`: into the tensors that are there; `rehome`: into an equivalent architecture that has the
            tensor; `insert`: as a module; `refuse`: not at all.
        reason: why this way, or why none.
        exactness: how close the artefact comes to the hook; empty for refused edits.
        cost: what it costs at inference; empty for refused edits.
    """

    index: int
    edit: Edit
    route: Route
    reason: str
    exactness: str = ""
    cost: str = ""


@dataclass(frozen=True)
class MapFold:
    """All edits of one linear map: what `fold` works on."""

    slot: Slot
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Lowering:
    """A plan with the decision for each of its edits, in order, and the folds that follow from them."""

    plan: EditPlan
    target: str
    decisions: tuple[Decision, ...]
    folds: tuple[MapFold, ...]

    @property
    def refused(self) -> tuple[Decision, ...]:
        """The decisions that refuse."""
        return tuple(decision for decision in self.decisions if decision.route == "refuse")

    def require_complete(self) -> None:
        """Raise unless every edit has a way.

        Raises:
            BadInputError: the message names each refused edit with its reason.
        """
        if not self.refused:
            return
        by_reason: dict[str, list[str]] = {}
        for decision in self.refused:
            by_reason.setdefault(decision.reason, []).append(str(decision.edit.site))
        listed = "; ".join(f"{', '.join(sites)}: {reason}" for reason, sites in by_reason.items())
        raise BadInputError(
            f"{len(self.refused)} of {len(self.decisions)} edits cannot be baked as {self.target}: {listed}"
        )


def lower(plan: EditPlan, model: ModelFolder, target: Target) -> Lowering:
    """Decide for each edit how it goes into the artefact `target`.

    Nothing is read but headers. Refusing is a value: `Lowering.require_complete` turns it into an error.
    """
    slots: dict[object, Slot] = {}
    decisions = []
    for index, edit in enumerate(plan.edits):
        try:
            slot = slots.get(edit.site) or find_slot(model, edit.site)
        except BadInputError as error:
            decisions.append(Decision(index, edit, "refuse", str(error)))
            continue
        slots[edit.site] = slot
        refusal = _misfit(edit, slot) or target.supports(edit, slot)
        if refusal is not None:
            decisions.append(Decision(index, edit, "refuse", refusal.reason))
        else:
            reason = "a linear edit of every position of a linear map's output"
            decisions.append(
                Decision(index, edit, "fold", reason, f"exact, rounded once to {slot.dtype}", "none: same tensors")
            )
    refused_sites = {decision.edit.site for decision in decisions if decision.route == "refuse"}
    folds = tuple(
        MapFold(slots[site], plan.groups_at(site)) for site in plan.sites if site in slots and site not in refused_sites
    )
    return Lowering(plan, target.name, tuple(decisions), folds)


def _misfit(edit: Edit, slot: Slot) -> Refusal | None:
    """Refuse widths that are not those of the map: the edit belongs to another model."""
    expected_read = slot.d_in if edit.reads == "input" else slot.d_out
    if edit.d_out != slot.d_out:
        return Refusal(f"the edit has width {edit.d_out}, the site's output has {slot.d_out}")
    if edit.reads != "block" and edit.d_read not in (None, expected_read):
        return Refusal(f"the edit reads {edit.d_read} values, the site's {edit.reads} has {expected_read}")
    return None


def fold_refusal(edit: Edit, slot: Slot) -> Refusal | None:
    """Why an edit cannot be folded into the tensors that are there; None if it can.

    y' = y + L g(Rᵀ r + s) + c is an affine map of the map's input z at every position only if g is the
    identity, all positions are edited, and r is y or z. Its constant strength · (L s + c) needs a bias.
    """
    if edit.gate != "identity":
        return Refusal(f"gate {edit.gate!r} is not linear, so no weight can hold it; it needs an inserted module")
    if edit.positions != "all":
        return Refusal("only the last position is edited, but a weight acts on all; it needs an inserted module")
    if edit.reads == "block":
        return Refusal("it reads what enters the block, which is not the writer's input; it needs added hidden units")
    if slot.bias is None and edit.has_constant:
        return Refusal(f"its constant needs a bias, and {slot.weight} has none")
    return None
