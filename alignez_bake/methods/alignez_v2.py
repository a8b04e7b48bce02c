"""AlignEZ as later published (arXiv 2406.03642, v2): edit along the directions of the differences good - bad.

Per layer, with X_good and X_bad [n, d] the outputs of the MLP at the last token of prompt + answer, without
persona, for the good and for the bad answers:

    1. drop the pairs whose two activations have a cosine above 0.8: they hold little of the difference;
    2. D = X_good - X_bad over the pairs kept;
    3. V = the strongest right singular vectors of D, as many as hold 90 % of ‖D‖² (or the rank that is given), each
       turned so that mean(D)·v > 0 (the released code leaves the sign to chance);
    4. gated form alone: of V only the directions along which the pairs agree in sign (`sign_filter`);
    5. of the layers, those with the largest alignment score (`alignment_score`): all, or as many as are asked for, or
       with `auto` those above the largest drop (`layer_choice`).

What the paper chooses anew for each query (neighbours among the queries, signs, layers) is frozen here: all pairs
are pooled, and steps 4 and 5 decide once.

**Gated form, the paper's own.** With the bad directions U those of bad - good, the same lines with the other sign,
U = -V, one chain a layer:

    y  <-  y - a U relu(Uᵀ y)         one-sided removal: only what points to the bad side goes
    y  <-  y + a V tanh(Vᵀ y)         bounded boost: at most a along each good direction

As V is orthonormal, each coordinate t = v·y changes by itself: t' = t + a relu(-t), then t'' = t' + a tanh(t').
With a = 1 nothing is left on the bad side. Gates do not fold.

**Linear form, the default.** Linear operators, relu(t) -> t and tanh(t) -> t, stand for both. With U = -V the linear
removal gives -V Vᵀy and the boost +V Vᵀy: applied together they cancel, applied in sequence the removal wins and
what separates good from bad is gone. So the linear form is the boost alone:

    y  <-  y + a V Vᵀ y

which widens what separates good from bad without adding to either, and folds. It is the same for v and -v, so it asks
for no sign; the removal of one side does.

A layer where too few pairs are left, or where no direction passes step 4, gets no edit, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.methods.alignment_score import alignment_score
from alignez_bake.methods.answer_rows import answer_rows, mlp_write_sites
from alignez_bake.methods.directions import Directions, directions_with_energy, top_directions
from alignez_bake.methods.layer_choice import largest_scores
from alignez_bake.methods.operators import boost, bounded_boost, one_sided_removal
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport
from alignez_bake.methods.sign_filter import FEWEST_TESTED, sign_agreement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit
    from alignez_bake.methods.answer_rows import AnswerRows
    from alignez_bake.methods.protocol import CaptureFunction, JsonValue
    from alignez_bake.site import Site

# Both numbers are the paper's.
_LARGEST_COSINE: Final = 0.8
_ENERGY: Final = 0.9
# One difference has one direction whatever it holds; from two on, what they share counts.
_FEWEST_PAIRS: Final = 2

# What a fit must say of itself; the linear form asks for no sign.
FROZEN: Final = (
    "AlignEZ chooses near queries, signs of directions and layers anew for each query, which weights cannot: here all "
    "pairs are pooled, for one score a layer"
)
FROZEN_GATED: Final = f"{FROZEN} and one test of signs a direction"


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
class _Layer:
    """What steps 1 to 4 found at a site: directions [d, k] and their score, or why there are none."""

    figures: dict[str, JsonValue]
    basis: NDArray[np.float64] | None = None
    score: float = 0.0
    skipped: str = ""


@dataclass(frozen=True)
class AlignezV2:
    """Edits along the directions of the differences.

    Figures: `pairs`; `kept`, those that pass the filter of cosines; `rank`; `energies`, the share of ‖D‖² of each
    direction that is edited; `score` of alignment; and where signs are tested, `agreeing`, the share of pairs on the
    mean's side of each direction, and `dropped`, how many directions were and why.
    """

    name: str = "alignez_v2"
    default_strength: float = 1.0
    needs_bias: bool = False
    has_gates: bool = True
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
        """One edit, or gated a chain of two, for each layer that has directions and is among the top ones.

        Raises:
            BadInputError: no layer has directions; activations of a layer are zero or not finite; a rank above
                what the differences of a layer span.
        """
        recorded = answer_rows(capture, self.sites(architecture, layers))
        found = {site: _layer(site, rows, settings) for site, rows in recorded.items()}
        usable = {site: layer.score for site, layer in found.items() if layer.basis is not None}
        if not usable:
            first, layer = next(iter(found.items()))
            raise BadInputError(
                f"method {self.name!r} found no layer with directions to edit: {first}: {layer.skipped}; "
                "use more pairs or another method"
            )
        choice = largest_scores(usable, settings.top_layers)
        edits: list[Edit] = []
        reports = []
        for site, layer in found.items():
            skipped = layer.skipped
            if layer.basis is not None and site in choice.sites:
                edits.extend(self._edits(site, layer.basis, settings))
            elif layer.basis is not None:
                skipped = choice.left_out
            reports.append(SiteReport(site, layer.figures, skipped or None))
        return FitResult(tuple(edits), tuple(reports), (FROZEN_GATED if settings.gated else FROZEN,))

    def _edits(self, site: Site, good: NDArray[np.float64], settings: MethodSettings) -> list[Edit]:
        strength = self.default_strength if settings.strength is None else settings.strength
        if not settings.gated:
            return [boost(site, good, strength, objective=settings.objective)]
        return [
            one_sided_removal(site, -good, strength, objective=settings.objective),
            bounded_boost(site, good, strength, objective=settings.objective),
        ]


def _layer(site: Site, rows: AnswerRows, settings: MethodSettings) -> _Layer:
    """Steps 1 to 4 of the module docstring, and the score of step 5."""
    differences, total = kept_differences(rows)
    figures: dict[str, JsonValue] = {"pairs": total, "kept": len(differences)}
    fewest = max(FEWEST_TESTED if settings.gated else _FEWEST_PAIRS, settings.rank or 0)
    if len(differences) < fewest:
        skipped = f"{len(differences)} of {total} pairs have a cosine of at most {_LARGEST_COSINE}, {fewest} are needed"
        return _Layer(figures, skipped=skipped)
    basis, energies = _directions(site, differences, settings.rank)
    if settings.gated:
        agreement = sign_agreement(differences, basis)
        figures["agreeing"] = (agreement.agreeing / agreement.pairs).tolist()
        if not agreement.kept.any():
            return _Layer(figures, skipped=f"the pairs agree in sign along no direction: {agreement.why_dropped()}")
        if not agreement.kept.all():
            figures["dropped"] = agreement.why_dropped()
        basis, energies = basis[:, agreement.kept], energies[agreement.kept]
    score = alignment_score(differences, basis)
    figures |= {"rank": energies.size, "energies": energies.tolist(), "score": score}
    return _Layer(figures, basis, score)


def _directions(site: Site, differences: NDArray[np.float64], rank: int | None) -> Directions:
    if rank is None:
        return directions_with_energy(site, differences, _ENERGY)
    return top_directions(site, differences, rank)


ALIGNEZ_V2: Final = AlignezV2()
