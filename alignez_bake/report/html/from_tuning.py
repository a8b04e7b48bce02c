"""What a search without labels found, as parts of a report."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from alignez_bake.report.html.report_data import Drift, MeasuredRate, SearchPoint
from alignez_bake.tuning.frontier import pareto_front

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignez_bake.report.html.report_data import RatedModel, ReportData
    from alignez_bake.tuning.frontier import FrontierPoint, TuningResult

SELF_JUDGE: Final = "the base itself"


def with_tuning(data: ReportData, tuning: TuningResult, *, measured_on: str = "neutral texts") -> ReportData:
    """A report with the frontier, the self-judged rates of base and result, and the KL against its budget.

    Where no candidate was chosen there is no result that they could be of: the frontier and the reason stand alone.

    Args:
        data: the report so far; its other rates stay, a drift that it has is replaced.
        tuning: the search.
        measured_on: what the KL was measured on.
    """
    chosen = tuning.chosen_point
    front = pareto_front(tuning.points)
    drift = None if chosen is None or chosen.kl is None else Drift(chosen.kl, tuning.kl_budget, measured_on)
    return replace(
        data,
        frontier=tuple(
            _search_point(point, chosen=point is chosen, on_front=point in front) for point in tuning.points
        ),
        rates=(*data.rates, *(_rates(tuning.base, chosen) if chosen is not None else ())),
        drift=drift if drift is not None else data.drift,
        notes=(*data.notes, tuning.reason),
    )


def _search_point(point: FrontierPoint, *, chosen: bool, on_front: bool) -> SearchPoint:
    rate = point.rate
    return SearchPoint(
        point.candidate,
        None if rate is None else rate.value,
        None if rate is None else rate.standard_error,
        point.kl,
        chosen=chosen,
        on_front=on_front,
        out=point.out or "",
    )


def _rates(base: FrontierPoint, chosen: FrontierPoint) -> Iterator[MeasuredRate]:
    models: tuple[tuple[RatedModel, FrontierPoint], ...] = (("base", base), ("aligned", chosen))
    for model, point in models:
        if point.rate is not None:
            yield MeasuredRate(model, SELF_JUDGE, point.rate.value, point.rate.low, point.rate.high, point.answers)
