"""AlignEZ v1 with the normal of a CCS probe as the bad direction (arXiv 2406.03642; Burns et al., arXiv 2212.03827).

Per layer, with X_good and X_bad [n, d] the outputs of the MLP at the last token of prompt + answer, without persona:

    u = unit normal of the probe of `ccs_probe`, turned to the bad side
    v = top right singular vector of X_good, as in `alignez_v1`
    y  <-  y - u uᵀ y        then        y  <-  y + a v vᵀ y

Where `alignez_v1` removes what all bad answers share, good ones included, this removes what tells the two apart. The
removal is the same for u and -u; the sign is for the report. A layer whose probe is of no use gets no edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.methods.alignez_v1 import frozen_note
from alignez_bake.methods.answer_rows import answer_rows, mlp_write_sites
from alignez_bake.methods.directions import top_directions
from alignez_bake.methods.operators import boost, remove
from alignez_bake.methods.probed_layers import probed_layers
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit
    from alignez_bake.methods.protocol import CaptureFunction
    from alignez_bake.site import Site


@dataclass(frozen=True)
class Ccs:
    """Removal of the probe's normal, then boost.

    Figures: `ccs_loss`; `accuracy`, the share of pairs whose good answer lies on the good side of its bad one;
    `consistency` and `confidence` of the probe (`ccs_probe.CcsProbe`); and where a layer is edited `good_energies`, the
    share of the good rows' energy along the boosted direction, [1].
    """

    name: str = "ccs"
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
            BadInputError: a rank above 1; activations of a layer are zero, not finite, or all the same; no layer's
                probe is of use.
        """
        if settings.rank not in (None, 1):
            raise BadInputError(f"method {self.name!r} has one normal a layer: rank {settings.rank} is not possible")
        strength = self.default_strength if settings.strength is None else settings.strength
        recorded = answer_rows(capture, self.sites(architecture, layers))
        probed = probed_layers(self.name, recorded, settings)
        edits: list[Edit] = []
        reports = []
        for site, rows in recorded.items():
            figures = probed.figures(site)
            if site not in probed.skipped:
                good = top_directions(site, rows.good, 1)
                edits.append(remove(site, -probed.probes[site].normal[:, None], objective=settings.objective))
                edits.append(boost(site, good.basis, strength, objective=settings.objective))
                figures["good_energies"] = good.energies.tolist()
            reports.append(SiteReport(site, figures, probed.skipped.get(site)))
        return FitResult(tuple(edits), tuple(reports), (frozen_note(settings),))


CCS: Final = Ccs()
