"""AlignEZ as later published (arXiv 2406.03642, v2), in its linear form: boost the directions of the differences.

Per layer, with X_good and X_bad [n, d] the outputs of the MLP at the last token of prompt + answer, without
persona, for the good and for the bad answers:

    1. drop the pairs whose two activations have a cosine above 0.8: they hold little of the difference;
    2. D = X_good - X_bad over the pairs kept;
    3. V = its strongest right singular vectors, as many as hold 90 % of ‖D‖² (or the rank that is given), each
       turned so that mean(D)·v > 0 (the released code leaves the sign to chance).

The paper then edits with gates, -U relu(Uᵀy) along bad directions and +V tanh(Vᵀy) along good ones. Gates do not
fold. Linear operators, relu(t) -> t and tanh(t) -> t, stand for both here, and the bad directions are those of
bad - good: the same lines with the other sign, U = -V. There the linear removal gives -V Vᵀy and the boost
+V Vᵀy: applied together they cancel, applied in sequence the removal wins and what separates good from bad is
gone. So the linear form is the boost alone:

    y  <-  y + a V Vᵀ y

which widens what separates good from bad without adding to either. `operators.one_sided_removal` and
`operators.bounded_boost` build the gated pair from the same V.

A layer where fewer pairs are left than two, or than the rank that is given, gets no edit, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.methods.answer_rows import answer_rows, mlp_write_sites
from alignez_bake.methods.directions import Directions, directions_with_energy, top_directions
from alignez_bake.methods.operators import boost
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit
    from alignez_bake.methods.answer_rows import AnswerRows
    from alignez_bake.methods.protocol import CaptureFunction
    from alignez_bake.site import Site

# Both numbers are the paper's.
_LARGEST_COSINE: Final = 0.8
_ENERGY: Final = 0.9
# One difference has one direction whatever it holds; from two on, what they share counts.
_FEWEST_PAIRS: Final = 2


class KeptDifferences(NamedTuple):
    """Differences good - bad of the pairs that pass the filter, float64 [m, d], and how many pairs there were."""

    differences: NDArray[np.float64]
    total: int


def kept_differences(rows: AnswerRows) -> KeptDifferences:
    """Differences of the pairs whose two activations have a cosine of at most 0.8; a zero activation has cosine 0."""
    products = (rows.good * rows.bad).sum(axis=1)
    lengths = np.linalg.norm(rows.good, axis=1) * np.linalg.norm(rows.bad, axis=1)
    kept = products <= _LARGEST_COSINE * lengths
    return KeptDifferences(rows.good[kept] - rows.bad[kept], len(products))


@dataclass(frozen=True)
class AlignezV2:
    """Boost of the differences. Figures: `pairs`, `kept`, `rank`, `energies` (share of ‖D‖² of each direction)."""

    name: str = "alignez_v2"
    default_strength: float = 1.0
    needs_bias: bool = False

    def sites(self, architecture: Architecture, layers: Sequence[int]) -> list[Site]:
        """The MLP's writer in each layer.

        Raises:
            BadInputError: the architecture has no such map.
        """
        return mlp_write_sites(architecture, layers)

    def fit(
        self, capture: CaptureFunction, architecture: Architecture, layers: Sequence[int], settings: MethodSettings
    ) -> FitResult:
        """One edit for each layer that keeps enough pairs.

        Raises:
            BadInputError: no layer keeps enough pairs; activations of a layer are zero or not finite; a rank
                above what the differences of a layer span.
        """
        strength = self.default_strength if settings.strength is None else settings.strength
        fewest = max(_FEWEST_PAIRS, settings.rank or 0)
        edits: list[Edit] = []
        reports = []
        for site, rows in answer_rows(capture, self.sites(architecture, layers)).items():
            kept, total = kept_differences(rows)
            figures = {"pairs": total, "kept": len(kept)}
            if len(kept) < fewest:
                skipped = (
                    f"{len(kept)} of {total} pairs have a cosine of at most {_LARGEST_COSINE}, {fewest} are needed"
                )
                reports.append(SiteReport(site, figures, skipped))
                continue
            found = _directions(site, kept, settings.rank)
            edits.append(boost(site, found.basis, strength, objective=settings.objective))
            reports.append(
                SiteReport(site, {**figures, "rank": found.basis.shape[1], "energies": found.energies.tolist()})
            )
        if not edits:
            raise BadInputError(
                f"method {self.name!r} found no layer with enough different pairs: {reports[0].site}: "
                f"{reports[0].skipped}; use more pairs or another method"
            )
        return FitResult(tuple(edits), tuple(reports))


def _directions(site: Site, differences: NDArray[np.float64], rank: int | None) -> Directions:
    if rank is None:
        return directions_with_energy(site, differences, _ENERGY)
    return top_directions(site, differences, rank)


ALIGNEZ_V2: Final = AlignezV2()
