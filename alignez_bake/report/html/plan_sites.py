"""What a plan of edits holds at each site, and what its fit found there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.report.html.report_data import SiteFigures

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan

SINGULAR_VALUES: Final = "singular values"
# Figures of a fit that have a place of their own; `rank` is counted on the edits themselves.
_OWN_PLACE: Final = ("site", "skipped", "explained", "edit_norm", "rank")


class _Found(NamedTuple):
    """What a fit recorded of one site: single numbers, lists of numbers, and why there is no edit."""

    numbers: dict[str, float]
    spectra: dict[str, tuple[float, ...]]
    skipped: str


def site_figures(plan: EditPlan) -> tuple[SiteFigures, ...]:
    """One entry for each objective and site, in order of application; sites that the fit left out follow.

    Strengths, ranks and singular values are those of the edits; figures of the fit come from the plan's provenance,
    which is free-form: what has another shape there than this tool's is left out.
    """
    edits: dict[tuple[str | None, str], list[Edit]] = {}
    for edit in plan.edits:
        edits.setdefault((edit.objective, str(edit.site)), []).append(edit)
    found = _fit_figures(plan.provenance.get("sites"))
    entries = [
        _entry(place, here, plan.weights, found.get(place) or found.get((None, place[1])))
        for place, here in edits.items()
    ]
    left_out = [
        SiteFigures(site, objective, spectra=of_site.spectra, others=_others(of_site), skipped=of_site.skipped)
        for (objective, site), of_site in found.items()
        if of_site.skipped and (objective, site) not in edits
    ]
    return (*entries, *left_out)


def singular_values(edit: Edit, weight: float = 1.0) -> tuple[float, ...]:
    """Singular values of weight · strength · L Rᵀ, largest first; none of a pure shift.

    With L = Q_L S_L and R = Q_R S_R (QR decompositions), L Rᵀ = Q_L (S_L S_Rᵀ) Q_Rᵀ, whose singular values are those of
    the k x k matrix S_L S_Rᵀ.
    """
    if edit.left is None or edit.right is None:
        return ()
    left, right = _triangle(edit.left), _triangle(edit.right)
    values = np.linalg.svd(left @ right.T, compute_uv=False)
    return tuple((abs(weight * edit.strength) * values).tolist())


def _triangle(columns: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """S of the QR decomposition Q S of the columns."""
    found: NDArray[np.float64] = np.linalg.qr(columns.astype(np.float64)).R
    return found


def _entry(
    place: tuple[str | None, str], edits: Sequence[Edit], weights: Mapping[str, float], found: _Found | None
) -> SiteFigures:
    objective, site = place
    weight = 1.0 if objective is None else float(weights.get(objective, 1.0))
    strengths = {weight * edit.strength for edit in edits}
    values = [singular_values(edit, weight) for edit in edits]
    names = [SINGULAR_VALUES] if len(edits) == 1 else [f"{SINGULAR_VALUES}, edit {n}" for n in range(1, len(edits) + 1)]
    spectra = {name: of_edit for name, of_edit in zip(names, values, strict=True) if of_edit}
    return SiteFigures(
        site,
        objective,
        strength=strengths.pop() if len(strengths) == 1 else None,
        rank=sum(edit.rank for edit in edits),
        spectra={**spectra, **({} if found is None else found.spectra)},
        explained=None if found is None else found.numbers.get("explained"),
        edit_norm=math.hypot(*values[0]) if len(edits) == 1 and values[0] else None,
        others={} if found is None else _others(found),
    )


def _others(found: _Found) -> dict[str, float]:
    return {name: value for name, value in found.numbers.items() if name not in _OWN_PLACE}


def _fit_figures(recorded: Any) -> dict[tuple[str | None, str], _Found]:  # noqa: ANN401 - JSON of any kind
    by_objective = recorded if isinstance(recorded, dict) else {}
    return {
        (objective, report["site"]): _found(report)
        for objective, reports in by_objective.items()
        for report in (reports if isinstance(reports, list) else [])
        if isinstance(report, dict) and isinstance(report.get("site"), str)
    }


def _found(report: Mapping[str, Any]) -> _Found:
    skipped = report.get("skipped")
    return _Found(
        {name: value for name, value in report.items() if _is_number(value)},
        {
            name: tuple(float(one) for one in value)
            for name, value in report.items()
            if name not in _OWN_PLACE and isinstance(value, list) and value and _are_numbers(value)
        },
        skipped if isinstance(skipped, str) else "",
    )


def _are_numbers(values: Iterable[object]) -> bool:
    return all(_is_number(value) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
