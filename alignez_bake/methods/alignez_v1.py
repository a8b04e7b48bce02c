"""AlignEZ as first published (arXiv 2406.03642, v1): remove the bad directions, then boost the good ones.

Per layer, with X_good and X_bad [n, d] the outputs of the MLP at the last token of prompt + answer, without
persona, for the good and for the bad answers of the pairs:

    V = top k right singular vectors of X_good        U = top k right singular vectors of X_bad
    y  <-  y - U Uᵀ y          ("x - <x, t> t / ‖t‖²" for each bad direction t)
    y  <-  y + a V Vᵀ y        ("x + <x, t> t / ‖t‖²" for each good direction, where a = 1)

The activations are not centred, as in the paper; so where good and bad answers share their strongest direction,
the two steps mostly undo each other. What the paper chooses anew for each query (neighbours among the queries,
layers, a sign filter) cannot live in weights: all pairs are used, and the layers are those that the caller
names. Name late ones: the strongest direction of an early layer is often one that all text needs, and removing it
breaks the model. The two steps are two edits in sequence, so that each has its columns sorted by contribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.methods.answer_rows import answer_rows, mlp_write_sites
from alignez_bake.methods.directions import top_directions
from alignez_bake.methods.operators import boost, remove
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit
    from alignez_bake.methods.protocol import CaptureFunction
    from alignez_bake.site import Site

# One direction a side, as the paper's main experiments.
_DEFAULT_RANK: Final = 1

FROZEN: Final = (
    "AlignEZ chooses near queries, signs of directions and layers anew for each query, which weights cannot: here all "
    "pairs are pooled, no sign is asked for, and the layers are those that were given"
)


@dataclass(frozen=True)
class AlignezV1:
    """Remove, then boost. Figures: `rank`, `good_energies` and `bad_energies` (share of the rows' energy, [k])."""

    name: str = "alignez_v1"
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
        """Two edits a layer, for removal and boost; the strength a belongs to the boost.

        Raises:
            BadInputError: activations of a layer are zero, not finite, or span fewer directions than the rank.
        """
        rank = _DEFAULT_RANK if settings.rank is None else settings.rank
        strength = self.default_strength if settings.strength is None else settings.strength
        edits: list[Edit] = []
        reports = []
        for site, rows in answer_rows(capture, self.sites(architecture, layers)).items():
            good = top_directions(site, rows.good, rank)
            bad = top_directions(site, rows.bad, rank)
            edits.append(remove(site, bad.basis, objective=settings.objective))
            edits.append(boost(site, good.basis, strength, objective=settings.objective))
            figures = {
                "rank": rank,
                "good_energies": good.energies.tolist(),
                "bad_energies": bad.energies.tolist(),
            }
            reports.append(SiteReport(site, figures))
        return FitResult(tuple(edits), tuple(reports), (FROZEN,))


ALIGNEZ_V1: Final = AlignezV1()
