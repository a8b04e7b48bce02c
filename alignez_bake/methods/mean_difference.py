"""Removal of the mean difference (difference-in-means ablation; Arditi et al., arXiv 2406.11717).

Per layer, with the outputs of the MLP at the last token of prompt + answer, without persona:

    u = (mean of bad - mean of good) / ‖mean of bad - mean of good‖          y  <-  y - strength · u uᵀ y

The default strength is 1, an orthogonal projection; 2 mirrors at the plane across u.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.methods.answer_rows import answer_rows, mlp_write_sites
from alignez_bake.methods.operators import remove
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit
    from alignez_bake.methods.answer_rows import AnswerRows
    from alignez_bake.methods.protocol import CaptureFunction
    from alignez_bake.site import Site

# A mean difference this small beside the activations is rounding, not a direction.
_SMALLEST_SHARE: Final = 1e-10


def mean_difference(site: Site, rows: AnswerRows) -> NDArray[np.float64]:
    """Mean of the good rows minus mean of the bad rows, float64 [d].

    Raises:
        BadInputError: the means are equal up to rounding.
    """
    difference: NDArray[np.float64] = rows.good.mean(axis=0) - rows.bad.mean(axis=0)
    scale = max(np.linalg.norm(rows.good.mean(axis=0)), np.linalg.norm(rows.bad.mean(axis=0)))
    if not np.linalg.norm(difference) > _SMALLEST_SHARE * scale:
        raise BadInputError(f"{site}: good and bad answers have the same mean activation: there is no direction")
    return difference


@dataclass(frozen=True)
class MeanDifference:
    """Removal of one direction. Figures: `difference_norm`; `separation`, the difference over the pooled spread."""

    name: str = "mean_difference"
    default_strength: float = 1.0
    needs_bias: bool = False
    has_gates: bool = False
    scores_layers: bool = False

    def sites(self, architecture: Architecture, layers: Sequence[int]) -> list[Site]:
        """The MLP's writer in each layer.

        Raises:
            BadInputError: the architecture has no such map.
        """
        return mlp_write_sites(architecture, layers)

    def fit(
        self, capture: CaptureFunction, architecture: Architecture, layers: Sequence[int], settings: MethodSettings
    ) -> FitResult:
        """One edit of rank 1 a layer.

        Raises:
            BadInputError: a rank above 1; activations of a layer are zero, not finite, or have equal means.
        """
        if settings.rank not in (None, 1):
            raise BadInputError(f"method {self.name!r} has one direction a layer: rank {settings.rank} is not possible")
        strength = self.default_strength if settings.strength is None else settings.strength
        edits: list[Edit] = []
        reports = []
        for site, rows in answer_rows(capture, self.sites(architecture, layers)).items():
            difference = mean_difference(site, rows)
            norm = float(np.linalg.norm(difference))
            bad = -difference / norm
            edits.append(remove(site, bad[:, None], objective=settings.objective).scaled(strength))
            reports.append(SiteReport(site, {"difference_norm": norm, "separation": separation(rows, bad)}))
        return FitResult(tuple(edits), tuple(reports))


def separation(rows: AnswerRows, direction: NDArray[np.float64]) -> float:
    """How far the two sides lie apart along a unit direction, in standard deviations within a side; 0 if none."""
    good, bad = rows.good @ direction, rows.bad @ direction
    spread = float(np.sqrt((good.var() + bad.var()) / 2.0))
    return float(abs(good.mean() - bad.mean()) / spread) if spread > 0.0 else 0.0


MEAN_DIFFERENCE: Final = MeanDifference()
