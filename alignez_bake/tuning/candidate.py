"""What may be chosen: a method with its settings, and the plan of edits that it gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.methods.registry import check_offered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit, Positions
    from alignez_bake.methods.protocol import CaptureFunction, Method, MethodSettings
    from alignez_bake.prompts.objective import Objective

BASE_NAME: Final = "base"
"""The candidate that edits nothing, which is always there."""


@dataclass(frozen=True)
class TunedObjective:
    """An objective with its dial, and the activations that its edits are fitted to.

    Attributes:
        objective: whose personas.
        weight: its dial w_o, of either sign, not 0.
        capture: over the objective's own pairs.
    """

    objective: Objective
    weight: float
    capture: CaptureFunction


@dataclass(frozen=True)
class Candidate:
    """One way to find edits.

    Attributes:
        name: for reports; no two candidates share one, and none is called `base`.
        method: with what it lets its own users set, such as `dataclasses.replace(RIDGE, penalty=0.1)`.
        settings: what it is told; the objective is put in for each.
        layers: to edit.
        positions: which rows of each forward call the edits change.
    """

    name: str
    method: Method
    settings: MethodSettings
    layers: tuple[int, ...]
    positions: Positions = "all"

    def __post_init__(self) -> None:
        """Refuse what can never give a plan of its own.

        Raises:
            BadInputError: a name that is empty, not printable, or the base's; no layers; settings that the method
                has no use for.
        """
        if not self.name.strip() or not self.name.isprintable() or self.name == BASE_NAME:
            raise BadInputError(
                f"{self.name!r} is no name of a candidate: it must be printable, and {BASE_NAME!r} is the model itself"
            )
        if not self.layers:
            raise BadInputError(f"candidate {self.name!r} has no layer to edit: give it at least one")
        check_offered(self.method, self.settings)

    @property
    def settings_json(self) -> dict[str, Any]:
        """All that leads to its edits, as JSON values: settings, layers, and what is set of the method itself."""
        strength = self.method.default_strength if self.settings.strength is None else self.settings.strength
        return {
            "strength": strength,
            "rank": self.settings.rank,
            "layers": list(self.layers),
            "positions": self.positions,
            "gated": self.settings.gated,
            "top_layers": self.settings.top_layers,
            "seed": self.settings.seed,
            "method": _own_settings(self.method),
        }


def _own_settings(method: object) -> dict[str, Any]:
    """The fields of a method that is a dataclass; nothing of any other."""
    return asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}


class Planned(NamedTuple):
    """A candidate with its plan, or with the reason why it has none."""

    candidate: Candidate
    plan: EditPlan | None
    reason: str | None


def plan_of(candidate: Candidate, objectives: Sequence[TunedObjective], architecture: Architecture) -> Planned:
    """Fit a candidate's edits, one objective after the other; each reads the unedited base.

    Args:
        candidate: what to fit.
        objectives: to what; with captures that remember (`RememberingCapture`) this runs no model twice.
        architecture: where the sites lie.

    Returns:
        The plan, with dials and without base and provenance. What the fit refuses as bad input becomes the reason.
    """
    edits: list[Edit] = []
    try:
        for objective in objectives:
            settings = replace(candidate.settings, objective=objective.objective.name)
            found = candidate.method.fit(objective.capture, architecture, candidate.layers, settings)
            edits.extend(replace(edit, positions=candidate.positions) for edit in found.edits)
    except BadInputError as error:
        return Planned(candidate, None, str(error))
    if not edits:
        return Planned(candidate, None, f"method {candidate.method.name!r} found nothing to edit in any layer")
    fitted = {edit.objective for edit in edits}
    weights = {
        objective.objective.name: objective.weight for objective in objectives if objective.objective.name in fitted
    }
    return Planned(candidate, EditPlan(tuple(edits), weights=weights), None)
