"""Contrastive ridge: the change that a persona makes to attention's output, predicted without the persona.

The same tokens, a prompt and the model's own good answer, are read three times: without persona, after the good
persona's sentence and after the bad one's. For the attention writer of one layer let

    Z [n, d_in]     its inputs without persona
    D [n, d_out]    half of (its output after the good persona - its output after the bad one), row t times w_t

with w_t in [0, 1] the disagreement of the two personas about the next token (`capture.weights`). The edit is the
linear map of rank k that best predicts D from Z, applied γ times: y <- y + γ Cᵀ z, where C [d_in, d_out] solves

    minimise  ‖D - Z C‖² + μ ‖C‖²   over rank(C) <= k,      μ = λ · mean(diag ZᵀZ)                           (1)

Solution. With Z̃ = [Z; √μ I] and D̃ = [D; 0] the objective is ‖D̃ - Z̃ C‖². Let M = Z̃ᵀZ̃ = ZᵀZ + μ I, which is
positive definite, and B = M⁻¹ Z̃ᵀD̃ = M⁻¹ ZᵀD, the solution without the bound on the rank. Its residual is
orthogonal to every Z̃ X, so

    ‖D̃ - Z̃ C‖² = ‖D̃ - Z̃ B‖² + ‖Z̃ B - Z̃ C‖²

and only the last term depends on C. By Eckart-Young it is least where Z̃ C is the truncated singular value
decomposition of Z̃ B, that is Z̃ B V Vᵀ with V [d_out, k] the top right singular vectors of Z̃ B, which are the top
eigenvectors of

    (Z̃ B)ᵀ Z̃ B = Bᵀ M B = Bᵀ ZᵀD        (eigenvalues s_1 >= s_2 >= ...: what each direction contributes)

C = B V Vᵀ attains it and has rank k. So y <- y + γ V (B V)ᵀ z: L = V, R = B V, exact from the moments ZᵀZ and
ZᵀD alone, which are sums over tokens. It reads the writer's input, so it folds as W' = W + γ L Rᵀ, a low-rank
change of the weight, and adds no constant.

γ = 2 adds the whole difference good - bad. What the edit adds is linear in γ, and halving D only halves R.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.capture.spec import MomentsSpec, Reading, Weight
from alignez_bake.edit import Edit
from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.capture.statistics import Moments
    from alignez_bake.methods.protocol import CaptureFunction

    Float64Array = NDArray[np.float64]

# Shares of the whole below which what is left is rounding of float32 activations summed in float64.
_SMALLEST_SPREAD: Final = 1e-12
_SMALLEST_CONTRIBUTION: Final = 1e-12


class RidgeFit(NamedTuple):
    """C = right leftᵀ of problem (1), best first.

    Attributes:
        left: V, float64 [d_out, k], orthonormal columns; the largest entry of each is positive.
        right: B V, float64 [d_in, k].
        contributions: eigenvalues of BᵀZᵀD, float64 [k], descending.
        explained: share of ‖D‖² that Z C explains on the tokens it was fitted on.
    """

    left: Float64Array
    right: Float64Array
    contributions: Float64Array
    explained: float


def fit_ridge(site: Site, moments: Moments, *, penalty: float, rank: int) -> RidgeFit:
    """Solve problem (1) of the module docstring for the D whose moments are given.

    Args:
        site: for messages.
        moments: ZᵀZ and ZᵀD.
        penalty: λ, above 0.
        rank: k; the fit has fewer columns where ZᵀD spans fewer directions.

    Raises:
        BadInputError: moments that are not finite; inputs that are zero or the same at every token; differences
            that are zero or that the inputs do not predict at all; a rank above the widths.
    """
    _check_moments(site, moments)
    widest = min(moments.d_in, moments.d_out)
    if rank > widest:
        raise BadInputError(f"{site}: rank {rank} is not possible: its map is {moments.d_out} x {moments.d_in}")
    penalised = moments.ztz + penalty * np.trace(moments.ztz) / moments.d_in * np.eye(moments.d_in)
    full = np.linalg.solve(penalised, moments.ztd)
    fitted = full.T @ moments.ztd
    eigenvalues, eigenvectors = np.linalg.eigh((fitted + fitted.T) / 2.0)
    contributions = eigenvalues[::-1][:rank]
    if not contributions[0] > _SMALLEST_CONTRIBUTION * moments.d_square:
        raise BadInputError(f"{site}: the inputs predict nothing of the difference between the personas")
    kept = contributions > _SMALLEST_CONTRIBUTION * contributions[0]
    left = eigenvectors[:, ::-1][:, :rank][:, kept]
    left = left * np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    right = full @ left
    contributions = contributions[kept]
    # ‖D‖² - ‖D - Z C‖² = 2 tr(Cᵀ ZᵀD) - tr(Cᵀ ZᵀZ C), where C = right leftᵀ and leftᵀ left = I.
    reduction = 2.0 * contributions.sum() - np.sum(right * (moments.ztz @ right))
    return RidgeFit(left, right, contributions, float(reduction / moments.d_square))


def _check_moments(site: Site, moments: Moments) -> None:
    if not (np.isfinite(moments.ztz).all() and np.isfinite(moments.ztd).all() and np.isfinite(moments.d_square)):
        raise BadInputError(f"{site}: activations are not finite: nothing can be fitted")
    energy = float(np.trace(moments.ztz))
    if moments.count == 0 or energy == 0.0:
        raise BadInputError(f"{site}: its inputs are zero at every token: nothing can be fitted")
    spread = energy - float(moments.z_sum @ moments.z_sum) / moments.count
    if not spread > _SMALLEST_SPREAD * energy:
        raise BadInputError(f"{site}: its inputs are the same at all {moments.count} tokens: nothing can be fitted")
    if moments.d_square == 0.0:
        raise BadInputError(f"{site}: its output is the same under both personas: there is no difference to fit")


@dataclass(frozen=True)
class Ridge:
    """Reduced-rank ridge regression at the attention writer; the values are those that design runs settled on.

    Figures: `tokens`, `rank`, `explained` (share of ‖D‖²), `contributions` [k], `edit_norm` ‖γ L Rᵀ‖.

    Attributes:
        name: as on the command line.
        default_strength: γ.
        needs_bias: it makes no constants.
        has_gates: it is linear.
        scores_layers: it edits all layers that are given.
        default_rank: k.
        penalty: λ.
        weight: how the rows of D are weighted.
    """

    name: str = "ridge"
    default_strength: float = 2.0
    needs_bias: bool = False
    has_gates: bool = False
    scores_layers: bool = False
    default_rank: int = 4
    penalty: float = 0.01
    weight: Weight | None = "disagreement"

    def sites(self, architecture: Architecture, layers: Sequence[int]) -> list[Site]:
        """The attention's writer in each layer.

        Raises:
            BadInputError: the architecture has no such map.
        """
        architecture.linear_site("attn_write")
        return [Site("attn_write", layer) for layer in layers]

    def spec(self, site: Site) -> MomentsSpec:
        """What is recorded at a site: ZᵀZ and ZᵀD with D = good - bad, twice the D of the derivation."""
        return MomentsSpec(
            site,
            key=Reading("plain", "input"),
            plus=Reading("good", "output"),
            minus=Reading("bad", "output"),
            answer="good",
            tokens="shared",
            weight=self.weight,
        )

    def fit(
        self, capture: CaptureFunction, architecture: Architecture, layers: Sequence[int], settings: MethodSettings
    ) -> FitResult:
        """One edit a layer, which reads the input of its map; all layers are fitted to the unedited model.

        Raises:
            BadInputError: as `fit_ridge`.
        """
        gamma = self.default_strength if settings.strength is None else settings.strength
        specs = {site: self.spec(site) for site in self.sites(architecture, layers)}
        recorded = capture(list(specs.values())).moments
        edits = []
        reports = []
        for site, spec in specs.items():
            moments = recorded[spec]
            rank = settings.rank or min(self.default_rank, moments.d_in, moments.d_out)
            fit = fit_ridge(site, moments, penalty=self.penalty, rank=rank)
            edit = Edit(
                site,
                left=fit.left,
                right=fit.right / 2.0,
                reads="input",
                strength=gamma,
                objective=settings.objective,
            )
            edits.append(edit)
            figures = {
                "tokens": moments.count,
                "rank": edit.rank,
                "explained": fit.explained,
                "contributions": (fit.contributions / 4.0).tolist(),
                "edit_norm": float(abs(gamma) * np.linalg.norm(fit.right) / 2.0),
            }
            reports.append(SiteReport(site, figures))
        return FitResult(tuple(edits), tuple(reports))


RIDGE: Final = Ridge()
