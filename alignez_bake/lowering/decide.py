"""What becomes of an edit in an artefact: a value with a reason, never a silent choice. `lower` chooses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan, Group
    from alignez_bake.inserted.model import SiteInsert
    from alignez_bake.lowering.fold import Write
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder

Route = Literal["fold", "rehome", "insert", "carry", "refuse"]


@dataclass(frozen=True)
class Refusal:
    """Why an edit cannot go into an artefact, and what can be done instead."""

    reason: str


class Target(Protocol):
    """What an artefact can carry; every exporter is one, and `exporters/protocol.py` says more."""

    name: str
    routes: frozenset[Route]
    exactness: str
    cost: str

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the artefact can carry the edit at this slot without inserted modules."""
        ...


@dataclass(frozen=True)
class Decision:
    """The way of one edit.

    Attributes:
        index: place of the edit in the plan.
        edit: the edit.
        route: `fold`: into the tensors that are there, or a low-rank change of them; `rehome`: into an equivalent
            model that has the tensor; `insert`: as a module; `carry`: as the record that it is; `refuse`: not at all.
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
    """All edits of one slot that fold: what `fold` works on."""

    slot: Slot
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Lowering:
    """A plan with the decision for each of its edits, in order, and what follows from them.

    Attributes:
        plan: the edits.
        target: name of the artefact.
        home: the model into whose tensors the folds go: the base, or an equivalent one that has room for them.
        decisions: one an edit.
        folds: linear edits of slots of `home`.
        writes: parts of tensors of `home` that hold added hidden units.
        inserts: sites whose edits become modules.
        home_changes: what makes `home` another model than the base, one line each.
        dtype: file dtype that the weights will have, if it is not the base's.
    """

    plan: EditPlan
    target: str
    home: ModelFolder
    decisions: tuple[Decision, ...]
    folds: tuple[MapFold, ...] = ()
    writes: Mapping[str, tuple[Write, ...]] = field(default_factory=dict)
    inserts: tuple[SiteInsert, ...] = ()
    home_changes: tuple[str, ...] = ()
    dtype: str | None = None

    @property
    def refused(self) -> tuple[Decision, ...]:
        """The decisions that refuse."""
        return tuple(decision for decision in self.decisions if decision.route == "refuse")

    def require_complete(self, formats: Sequence[str] = ()) -> None:
        """Raise unless every edit has a way.

        Args:
            formats: artefacts that can carry what this one refuses, for the message.

        Raises:
            BadInputError: the message names each refused edit with its reason.
        """
        if not self.refused:
            return
        by_reason: dict[str, list[str]] = {}
        for decision in self.refused:
            by_reason.setdefault(decision.reason, []).append(str(decision.edit.site))
        listed = "; ".join(f"{', '.join(sites)}: {reason}" for reason, sites in by_reason.items())
        others = f"; --as can carry them: {', '.join(formats)}" if formats else ""
        raise BadInputError(
            f"{len(self.refused)} of {len(self.decisions)} edits cannot be baked as {self.target}: {listed}{others}"
        )


def fold_refusal(edit: Edit, slot: Slot) -> Refusal | None:
    """Why an edit cannot be folded into the tensors that are there; None if it can.

    y' = y + L g(Rᵀ r + s) + c is an affine map of the map's input z at every position only if g is the
    identity, all positions are edited, and r is y or z. Its constant strength · (L s + c) needs a bias.
    """
    lacks_home = edit.has_constant and slot.bias is None and slot.kind != "embedding"
    obstacles = (
        (edit.gate != "identity", f"gate {edit.gate!r} is not linear, so no weight can hold it"),
        (edit.positions != "all", "only the last position is edited, but a weight acts on all"),
        (edit.reads == "block", "it reads what enters the block, which is not the writer's input"),
        (bool(slot.obstacle), slot.obstacle),
        (
            lacks_home and slot.kind == "experts",
            "its constant would be weighed by the router, and no expert has a bias to hold it",
        ),
        (lacks_home, "its constant needs a bias, and its map has none"),
    )
    return next((Refusal(reason) for stands, reason in obstacles if stands), None)
