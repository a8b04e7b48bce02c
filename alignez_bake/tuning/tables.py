"""What a search found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.report.tables import table
from alignez_bake.tuning.frontier import pareto_front

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.tuning.frontier import FrontierPoint, TuningResult


def tuning_tables(tuning: TuningResult) -> list[Table | str]:
    """Every candidate with its self-judged rate and its KL, and a line that says what was chosen and why."""
    front = pareto_front(tuning.points)
    rows = [
        (
            point.candidate,
            _rate(point),
            point.answers,
            None if point.kl is None else f"{point.kl:.5f}",
            _remark(point, tuning, on_front=point in front),
        )
        for point in tuning.points
    ]
    gain = tuning.gain
    said = "Chosen" if tuning.chosen is not None else "Nothing chosen"
    interval = "" if gain is None else f" Gain {gain.value:+.3f} (95 % {gain.low:+.3f} to {gain.high:+.3f})."
    return [
        table(
            f"Choice on {tuning.queries} held-out queries, KL budget {tuning.kl_budget:.4g} nats per token",
            ("candidate", "judged good by the base", "answers", "KL on neutral texts", "remark"),
            rows,
        ),
        f"{said}: {tuning.reason}.{interval}",
    ]


def _rate(point: FrontierPoint) -> str | None:
    return None if point.rate is None else f"{point.rate.value:.3f} ± {point.rate.standard_error:.3f}"


def _remark(point: FrontierPoint, tuning: TuningResult, *, on_front: bool) -> str:
    if point.candidate == tuning.chosen:
        return "chosen"
    return point.out or ("no other is better and gentler" if on_front else "")
