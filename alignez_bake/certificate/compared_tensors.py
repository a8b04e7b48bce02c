"""What level `tensors` says of every artefact that holds the baked model's own tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from alignez_bake.certificate.verdict import Level, Verdict, lowest_share, tensors_json

if TYPE_CHECKING:
    from alignez_bake.lowering.fold import Delivery


@dataclass(frozen=True)
class ComparedTensors(ABC):
    """What a comparison with base and formula, tensor by tensor, found; each kind of artefact adds figures of its own.

    Attributes:
        verdict: `failed` where something is not what it must be or an edit was lost to rounding; `inconclusive` where
            the formula changes nothing; else `passed`.
        reasons: one line each for what went wrong.
        deliveries: for each edited tensor how much of the edit its rounding kept.
        untouched: number of tensors without an edit that were compared with what they must be.
        added: number of parameters of inserted edits, likewise.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    deliveries: tuple[Delivery, ...]
    untouched: int
    added: int
    level: Level = field(default="tensors", init=False)

    @property
    def lowest_share(self) -> float | None:
        """The smallest delivered share; None if no tensor changed."""
        return lowest_share(delivery.share for delivery in self.deliveries)

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        figures = tensors_json(
            self,
            edited=len(self.deliveries),
            untouched=self.untouched,
            lowest_delivered_share=self.lowest_share,
        )
        tensors = [asdict(entry) for entry in self.deliveries]
        return {**figures, "inserted_tensors": self.added, **self.own_figures(), "tensors": tensors}

    @abstractmethod
    def own_figures(self) -> dict[str, Any]:
        """Those of this kind of artefact alone, as JSON values."""
