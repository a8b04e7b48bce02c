"""AlignEZ as first published (arXiv 2406.03642, v1): remove the bad directions, then boost the good ones.

Per layer, with X_good and X_bad [n, d] the outputs of the MLP at the last token of prompt + answer, without
persona, for the good and for the bad answers of the pairs:

    V = top k right singular vectors of X_good        U = top k right singular vectors of X_bad
    y  <-  y - U Uᵀ y          ("x - <x, t> t / ‖t‖²" for each bad direction t)
    y  <-  y + a V Vᵀ y        ("x + <x, t> t / ‖t‖²" for each good direction, where a = 1)

The activations are not centred, as in the paper; so where good and bad answers share their strongest direction,
the two steps mostly undo each other. What the paper chooses anew for each query (neighbours among the queries,
layers, a sign filter) cannot live in weights: all pairs are used, and the layers are those that the caller
names, or of these, with `top_layers`, those with the smallest loss of a CCS probe (`probed_layers`, `layer_choice`).
Name late ones, either way: the strongest direction of an early layer is often one that all text needs, and removing it
breaks the model. The two steps are two edits in sequence, so that each has its columns sorted by contribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.methods.answer_rows import answer_rows, mlp_write_sites
from alignez_bake.methods.directions import top_directions
from alignez_bake.methods.operators import boost, remove
from alignez_bake.methods.probed_layers import NO_PROBES, probed_layers
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit
    from alignez_bake.methods.protocol import CaptureFunction
    from alignez_bake.site import Site

# One direction a side, as the paper's main experiments.
_DEFAULT_RANK: Final = 1

_FROZEN: Final = (
    "AlignEZ chooses near queries, signs of directions and layers anew for each query, which weights cannot: here all "
    "pairs are pooled, no sign is asked for, and the layers are"
)


def frozen_note(settings: MethodSettings) -> str:
    """What a fit must say of itself: the choices that are made once."""
    if settings.top_layers is None:
        return f"{_FROZEN} those that were given"
    return f"{_FROZEN}, of those that were given, the ones with the smallest CCS loss over all pairs"


@dataclass(frozen=True)
class AlignezV1:
    """Remove, then boost.

    Figures: `rank`, `good_energies` and `bad_energies` (share of the rows' energy, [k]); where layers are chosen also
    those of the probe, as in `ccs`.
    """

    name: str = "alignez_v1"
    default_strength: float = 1.0
    needs_bias: bool = False
    has_gates: bool = False
    scores_layers: bool = True

    def sites(self, architecture: Architecture, layers: Sequence[int]) -> list[Site]:
        """The MLP's writer in each layer.

        Raises:
            BadInputError: the architecture has no such map.
        """
        return mlp_write_sites(architecture, layers)

    def fit(
        self, capture: CaptureFunction, architecture: Architecture, layers: Sequence[int], settings: MethodSettings
    ) -> FitResult:
        """Two edits for each layer that is chosen, for removal and boost; the strength a belongs to the boost.

        Raises:
            BadInputError: activations of a layer are zero, not finite, or span fewer directions than the rank; layers
                are to be chosen, and no layer's probe is of use.
        """
        rank = _DEFAULT_RANK if settings.rank is None else settings.rank
        strength = self.default_strength if settings.strength is None else settings.strength
        recorded = answer_rows(capture, self.sites(architecture, layers))
        probed = NO_PROBES if settings.top_layers is None else probed_layers(self.name, recorded, settings)
        edits: list[Edit] = []
        reports = []
        for site, rows in recorded.items():
            figures = probed.figures(site)
            if site not in probed.skipped:
                good = top_directions(site, rows.good, rank)
                bad = top_directions(site, rows.bad, rank)
                edits.append(remove(site, bad.basis, objective=settings.objective))
                edits.append(boost(site, good.basis, strength, objective=settings.objective))
                figures |= {
                    "rank": rank,
                    "good_energies": good.energies.tolist(),
                    "bad_energies": bad.energies.tolist(),
                }
            reports.append(SiteReport(site, figures, probed.skipped.get(site)))
        return FitResult(tuple(edits), tuple(reports), (frozen_note(settings),))


ALIGNEZ_V1: Final = AlignezV1()
