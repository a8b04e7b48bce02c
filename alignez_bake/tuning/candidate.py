"""What may be chosen: a method with its settings, and the plan of edits that it gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.methods.registry import check_offered
from alignez_bake.progress import NoProgress
from alignez_bake.tuning.frontier import BASE_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Positions
    from alignez_bake.methods.protocol import CaptureFunction, FitResult, Method, MethodSettings, SiteReport
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.objective import Objective


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
            "penalty": self.settings.penalty,
            "layers": list(self.layers),
            "positions": self.positions,
            "gated": self.settings.gated,
            "untie": self.settings.untie,
            "top_layers": self.settings.top_layers,
            "seed": self.settings.seed,
            "method": _own_settings(self.method),
        }


def _own_settings(method: object) -> dict[str, Any]:
    """The fields of a method that is a dataclass; nothing of any other."""
    return asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}


class Planned(NamedTuple):
    """A candidate with its plan, or with the reason why it has none.

    Attributes:
        candidate: which.
        plan: with dials, without base and provenance; None where the fit refused.
        reason: why it refused.
        sites: by objective what the fit found at each site.
        notes: sentences that must stand beside the edits.
    """

    candidate: Candidate
    plan: EditPlan | None
    reason: str | None
    sites: Mapping[str, tuple[SiteReport, ...]] = MappingProxyType({})
    notes: tuple[str, ...] = ()


def plans_of(
    candidates: Sequence[Candidate],
    objectives: Sequence[TunedObjective],
    architecture: Architecture,
    progress: Progress | None = None,
) -> list[Planned]:
    """Fit every candidate's edits, one objective after the other; each objective reads the unedited base.

    Args:
        candidates: what to fit.
        objectives: to what; with captures that remember (`RememberingCapture`) nothing of the base is recorded twice.
        architecture: where the sites lie.
        progress: counts candidates.

    Returns:
        Their plans, in the given order. What a fit refuses as bad input becomes the reason.
    """
    planned = []
    with (progress or NoProgress()).task("fitting candidates", len(candidates)) as advance:
        for candidate in candidates:
            planned.append(_fitted(candidate, objectives, architecture))
            advance()
    return planned


def _fitted(candidate: Candidate, objectives: Sequence[TunedObjective], architecture: Architecture) -> Planned:
    fits: dict[str, FitResult] = {}
    try:
        for each in objectives:
            settings = replace(candidate.settings, objective=each.objective.name)
            fits[each.objective.name] = candidate.method.fit(each.capture, architecture, candidate.layers, settings)
    except BadInputError as error:
        return Planned(candidate, None, str(error))
    return _planned(candidate, fits, {each.objective.name: each.weight for each in objectives})


def _planned(candidate: Candidate, fits: Mapping[str, FitResult], weights: Mapping[str, float]) -> Planned:
    edits = [replace(edit, positions=candidate.positions) for fit in fits.values() for edit in fit.edits]
    if not edits:
        return Planned(candidate, None, f"method {candidate.method.name!r} found nothing to edit in any layer")
    edited = {edit.objective for edit in edits}
    return Planned(
        candidate,
        EditPlan(tuple(edits), weights={name: weight for name, weight in weights.items() if name in edited}),
        None,
        {name: fit.sites for name, fit in fits.items()},
        tuple(dict.fromkeys(note for fit in fits.values() for note in fit.notes)),
    )
