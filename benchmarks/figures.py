"""From cells to the figures of the tables: pooled rates with intervals, spread over seeds, gap closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.evaluation.rates import Rate, gap_closed, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.cells import Measured


@dataclass(frozen=True)
class Spread:
    """Mean, lowest and highest over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(sum(values) / len(values), min(values), max(values))

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Mean and, in brackets, lowest to highest."""
        mean, low, high = (f"{scale * value:.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


@dataclass(frozen=True)
class Run:
    """One seed of a model: what was measured, on which places of the held-out queries it is to be counted."""

    measured: Measured
    samples: int
    places: tuple[int, ...]

    @property
    def rate(self) -> Rate:
        """Share of good answers on those places."""
        return rate(sum(self.measured.good[place] for place in self.places), self.samples * len(self.places))


@dataclass(frozen=True)
class Figures:
    """A model over all seeds.

    Attributes:
        rate: all answers of all seeds pooled.
        by_seed: share of good answers of each seed.
        gap: per cent of the gap closed, over seeds; None for a model that frames the gap.
        loss: on good documents; None where it means nothing.
        kl: on neutral texts.
        seconds: by step.
        load: of the machine at the end of each run, highest.
        strengths: of each seed; empty for a reference.
        delivered_share: lowest over the tensors of baked models.
    """

    rate: Rate
    by_seed: tuple[float, ...]
    gap: Spread | None
    loss: Spread | None
    kl: Spread | None
    seconds: dict[str, Spread]
    load: float
    strengths: tuple[float, ...]
    delivered_share: float | None

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        *,
        frame: tuple[float, float] | None = None,
        strengths: Sequence[float] = (),
    ) -> Figures:
        """Figures of the runs of one model.

        Args:
            runs: one a seed.
            frame: rates of base and tuned model on the same queries, all seeds pooled.
            strengths: of each seed.
        """
        rates = [run.rate for run in runs]
        pooled = rate(sum(r.successes for r in rates), sum(r.total for r in rates))
        gaps = [gap_closed(frame[0], r.value, frame[1]) for r in rates] if frame else []
        known = [gap for gap in gaps if gap is not None]
        steps = runs[0].measured.seconds or {}
        shares = [run.measured.delivered_share for run in runs if run.measured.delivered_share is not None]
        return cls(
            rate=pooled,
            by_seed=tuple(r.value for r in rates),
            gap=Spread.of(known) if known else None,
            loss=_spread([run.measured.loss for run in runs]),
            kl=_spread([run.measured.kl for run in runs]),
            seconds={step: Spread.of([(run.measured.seconds or {})[step] for run in runs]) for step in steps},
            load=max(run.measured.load or 0.0 for run in runs),
            strengths=tuple(strengths),
            delivered_share=min(shares) if shares else None,
        )


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known else None
