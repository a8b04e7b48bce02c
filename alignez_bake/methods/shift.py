"""The additive baseline: a step from the bad answers' mean to the good ones' (CAA, arXiv 2312.06681; ITI, 2306.03341).

Per layer, with the outputs of the MLP at the last token of prompt + answer, without persona:

    y  <-  y + a · (mean of good - mean of bad)          at every token

The step is a constant, so it needs a bias to be folded into. It is the same whatever is being written, which is
why a large a damages the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.methods.answer_rows import answer_rows, mlp_write_sites
from alignez_bake.methods.mean_difference import mean_difference, separation
from alignez_bake.methods.operators import shift
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit
    from alignez_bake.methods.protocol import CaptureFunction
    from alignez_bake.site import Site


@dataclass(frozen=True)
class Shift:
    """A constant step. Figures: `difference_norm`; `separation`, the difference over the pooled spread."""

    name: str = "shift"
    default_strength: float = 1.0
    needs_bias: bool = True
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
        """One constant a layer.

        Raises:
            BadInputError: a rank, which a constant does not have; activations of a layer are zero, not finite,
                or have equal means.
        """
        if settings.rank is not None:
            raise BadInputError(f"method {self.name!r} adds a constant: rank {settings.rank} means nothing for it")
        strength = self.default_strength if settings.strength is None else settings.strength
        edits: list[Edit] = []
        reports = []
        for site, rows in answer_rows(capture, self.sites(architecture, layers)).items():
            difference = mean_difference(site, rows)
            norm = float(np.linalg.norm(difference))
            edits.append(shift(site, difference, strength, objective=settings.objective))
            reports.append(
                SiteReport(site, {"difference_norm": norm, "separation": separation(rows, difference / norm)})
            )
        return FitResult(tuple(edits), tuple(reports))


SHIFT: Final = Shift()
