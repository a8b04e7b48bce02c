"""What a search found: every candidate with its rate and its price, and which one was chosen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import shown
from alignez_bake.tuning.uncertainty import ClusteredMean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")

FORMAT: Final = 1
BASE_NAME: Final = "base"
"""The candidate that edits nothing, which is always there."""


@dataclass(frozen=True)
class FrontierPoint:
    """One candidate, as far as it came.

    Attributes:
        candidate: its name; the first point is always the base's, which edits nothing.
        method: name of its method; empty for the base.
        settings: `Candidate.settings_json`; empty for the base.
        rate: self-judged, within [0, 1]; None where it gave no edits.
        kl: KL(base || edited) on neutral texts, in nats per token; None where it was not measured or not finite.
        answers: how many answers the rate is of.
        out: why it was left behind, a sentence; None for the base and for those that came to the last choice.
    """

    candidate: str
    method: str
    settings: Mapping[str, Any]
    rate: ClusteredMean | None
    kl: float | None
    answers: int
    out: str | None

    def to_json(self) -> dict[str, Any]:
        """The point as JSON values."""
        return {**asdict(self), "settings": dict(self.settings)}


@dataclass(frozen=True)
class TuningResult:
    """The outcome of a search.

    Attributes:
        points: the base, then the candidates in the order in which they were given.
        chosen: name of the candidate; None where none is better than the base.
        reason: a sentence that says why.
        gain: of the chosen one's rate over the base's, on the same queries and random numbers, its interval wide enough
            for all candidates at once; where none is chosen, that of the best of the last round; None where no
            candidate came so far.
        kl_budget: most KL that was allowed, in nats per token.
        queries: number of held-out queries.
        floors: of coherence by objective, in nats per token.
    """

    points: tuple[FrontierPoint, ...]
    chosen: str | None
    reason: str
    gain: ClusteredMean | None
    kl_budget: float
    queries: int
    floors: Mapping[str, float]

    @property
    def base(self) -> FrontierPoint:
        """The point of the model without edits."""
        return self.points[0]

    @property
    def chosen_point(self) -> FrontierPoint | None:
        """The point of the chosen candidate."""
        return next((point for point in self.points if point.candidate == self.chosen), None)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values; `from_json` reads them back."""
        return {
            "format": FORMAT,
            "chosen": self.chosen,
            "reason": self.reason,
            "gain": None if self.gain is None else asdict(self.gain),
            "kl_budget": self.kl_budget,
            "queries": self.queries,
            "floors": dict(self.floors),
            "pareto_front": [point.candidate for point in pareto_front(self.points)],
            "points": [point.to_json() for point in self.points],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], place: str) -> TuningResult:
        """Read what `to_json` gave.

        Args:
            value: the object.
            place: what it is, for messages.

        Raises:
            BadInputError: another format, or a key that is missing or of another type.
        """
        if value.get("format") != FORMAT:
            raise BadInputError(
                f"{place} is a tuning result of format {shown(value.get('format'))}: this version reads {FORMAT}"
            )
        try:
            result = cls(
                points=tuple(_point(point) for point in value["points"]),
                chosen=_optional(value["chosen"], str),
                reason=_typed(value["reason"], str),
                gain=_estimate(value["gain"]),
                kl_budget=_number(value["kl_budget"]),
                queries=_typed(value["queries"], int),
                floors={_typed(name, str): _number(floor) for name, floor in value["floors"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"{place} is no tuning result: {type(error).__name__}: {shown(str(error))}") from error
        names = [point.candidate for point in result.points]
        if not names or names[0] != BASE_NAME or (result.chosen is not None and result.chosen not in names):
            raise BadInputError(
                f"{place} is no tuning result: its points must begin with the {BASE_NAME} and hold the chosen one"
            )
        return result


def pareto_front(points: Sequence[FrontierPoint]) -> tuple[FrontierPoint, ...]:
    """The points that no other beats: none has at least the rate at no more KL, and one of the two better.

    Points without both figures are left out. Rates of few answers are compared as they are. Points with equal figures
    are all in.

    Returns:
        By KL, then in the given order.
    """
    measured = [
        (point.rate.value, point.kl, point) for point in points if point.rate is not None and point.kl is not None
    ]
    front = [
        (kl, point)
        for rate, kl, point in measured
        if not any(
            other_rate >= rate and other_kl <= kl and (other_rate > rate or other_kl < kl)
            for other_rate, other_kl, _ in measured
        )
    ]
    return tuple(point for _, point in sorted(front, key=lambda entry: entry[0]))


def _point(value: Mapping[str, Any]) -> FrontierPoint:
    return FrontierPoint(
        candidate=_typed(value["candidate"], str),
        method=_typed(value["method"], str),
        settings=_typed(value["settings"], dict),
        rate=_estimate(value["rate"]),
        kl=None if value["kl"] is None else _number(value["kl"]),
        answers=_typed(value["answers"], int),
        out=_optional(value["out"], str),
    )


def _estimate(value: Mapping[str, Any] | None) -> ClusteredMean | None:
    if value is None:
        return None
    return ClusteredMean(*(_number(value[name]) for name in ("value", "low", "high", "standard_error")))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{shown(value)} is no finite number")
    return float(value)


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{shown(value)} is no {kind.__name__}")
    return value


def _optional(value: object, kind: type[T]) -> T | None:
    return None if value is None else _typed(value, kind)
