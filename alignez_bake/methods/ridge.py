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
ZᵀD alone, which are sums over tokens; where there are fewer tokens than Z is wide, from Z and D themselves, in the
space of the tokens (`methods.ridge_systems`), with the same result. It reads the writer's input, so it folds as
W' = W + γ L Rᵀ, a low-rank change of the weight, and adds no constant.

γ = 2 adds the whole difference good - bad. What the edit adds is linear in γ, and halving D only halves R.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from alignez_bake.capture.spec import MomentsSpec, Reading, Weight
from alignez_bake.capture.statistics import TokenRows, rows_are_less
from alignez_bake.edit import Edit
from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import FitResult, MethodSettings, SiteReport
from alignez_bake.methods.ridge_checks import checked_energy
from alignez_bake.methods.ridge_systems import dual_system, primal_system
from alignez_bake.methods.top_eigenpairs import top_eigenpairs
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.capture.statistics import ActivationStatistics, Moments
    from alignez_bake.methods.protocol import CaptureFunction, JsonValue
    from alignez_bake.methods.top_eigenpairs import FoundBy
    from alignez_bake.site import SiteKind

    Float64Array = NDArray[np.float64]
    Form = Literal["primal", "dual"]

_SMALLEST_CONTRIBUTION: Final = 1e-12
"""Share of the whole below which what is left is rounding of float32 activations summed in float64."""


class RidgeFit(NamedTuple):
    """C = right leftᵀ of problem (1), best first.

    Attributes:
        left: V, float64 [d_out, k], orthonormal columns; the largest entry of each is positive.
        right: B V, float64 [d_in, k].
        contributions: eigenvalues of BᵀZᵀD, float64 [k], descending.
        explained: share of ‖D‖² that Z C explains on the tokens it was fitted on.
        form: what was solved, [d_in, d_in] or [n, n].
        eigenvectors: how V was found.
        residual: of V, relative, where it was found by random probing; else 0.
    """

    left: Float64Array
    right: Float64Array
    contributions: Float64Array
    explained: float
    form: Form
    eigenvectors: FoundBy
    residual: float

    def figures(self, tokens: int, *, factor: float = 1.0, strength: float = 1.0) -> dict[str, JsonValue]:
        """What a method reports of a site.

        Args:
            tokens: that the fit was made on.
            factor: of C in the edit, where the D that was recorded is 1 / factor of the one that is meant.
            strength: of the edit.
        """
        residual: dict[str, JsonValue] = {"eigenvectors_residual": self.residual} if self.residual else {}
        return {
            "tokens": tokens,
            "rank": len(self.contributions),
            "explained": self.explained,
            "contributions": (factor**2 * self.contributions).tolist(),
            "edit_norm": float(abs(strength) * factor * np.linalg.norm(self.right)),
            "form": self.form,
            "eigenvectors": self.eigenvectors,
            **residual,
        }


def fit_ridge(site: Site, recorded: Moments | TokenRows, *, penalty: float, rank: int, seed: int = 0) -> RidgeFit:
    """Solve problem (1) of the module docstring, in the form that the sizes ask for.

    That is the dual form for rows of fewer tokens than Z is wide, and the primal one for all else.

    Args:
        site: for messages.
        recorded: ZᵀZ and ZᵀD, or Z and D.
        penalty: λ, above 0.
        rank: k; the fit has fewer columns where ZᵀD spans fewer directions.
        seed: where eigenvectors are found by random probing.

    Raises:
        BadInputError: values that are not finite; inputs that are zero or the same at every token; differences that are
            zero or that the inputs do not predict at all; a rank above the widths.
    """
    if isinstance(recorded, TokenRows) and not rows_are_less(recorded.count, recorded.d_in):
        recorded = recorded.moments()
    d_square = checked_energy(site, recorded)
    if rank > min(recorded.d_in, recorded.d_out):
        raise BadInputError(f"{site}: rank {rank} is not possible: its map is {recorded.d_out} x {recorded.d_in}")
    form: Form
    if isinstance(recorded, TokenRows):
        form, system = "dual", dual_system(recorded, penalty=penalty)
    else:
        form, system = "primal", primal_system(recorded, penalty=penalty)
    top = top_eigenpairs(system.fitted, rank, seed=seed)
    if not top.values[0] > _SMALLEST_CONTRIBUTION * d_square:
        raise BadInputError(f"{site}: the inputs predict nothing of the difference between the personas")
    kept = top.values > _SMALLEST_CONTRIBUTION * top.values[0]
    contributions, directions = top.values[kept], top.vectors[:, kept]
    left = system.outputs(directions)
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    left, right = left * signs, system.inputs(directions * signs)
    # ‖D‖² - ‖D - Z C‖² = 2 tr(Cᵀ ZᵀD) - tr(Cᵀ ZᵀZ C), where C = right leftᵀ and leftᵀ left = I.
    explained = float((2.0 * contributions.sum() - system.energy(right)) / d_square)
    return RidgeFit(left, right, contributions, explained, form, top.found_by, top.residual)


def fit_recorded(
    statistics: ActivationStatistics,
    spec: MomentsSpec,
    settings: MethodSettings,
    *,
    default_rank: int,
    penalty: float,
    left_alone: NDArray[np.float32] | None = None,
) -> tuple[RidgeFit, int]:
    """The ridge of what was recorded at one site, whose memory is released then, and the number of tokens.

    Args:
        statistics: of a capture.
        spec: which of them.
        settings: rank, λ and seed.
        default_rank: k where none is asked for; less where the map is narrower.
        penalty: λ where none is asked for.
        left_alone: rows of Z at tokens at which D is to be 0 [m, d_in]; they count as much as the others. None: none.

    Raises:
        BadInputError: as `fit_ridge`.
    """
    recorded = statistics.sums_of(spec)
    tokens = recorded.count
    if left_alone is not None:
        recorded = recorded.with_nothing_wanted(left_alone)
    rank = settings.rank or min(default_rank, recorded.d_in, recorded.d_out)
    chosen = penalty if settings.penalty is None else settings.penalty
    fit = fit_ridge(spec.site, recorded, penalty=chosen, rank=rank, seed=settings.seed)
    statistics.release()
    return fit, tokens


@dataclass(frozen=True)
class Ridge:
    """Reduced-rank ridge regression at a writer; the values are those that design runs settled on.

    Figures: `tokens`, `rank`, `explained` (share of ‖D‖²), `contributions` [k], `edit_norm` ‖γ L Rᵀ‖, `form` (primal or
    dual), `eigenvectors` (full, or how else), and where there is one `eigenvectors_residual`.

    Attributes:
        name: as on the command line.
        default_strength: γ.
        needs_bias: it makes no constants.
        has_gates: it is linear.
        scores_layers: it edits all layers that are given.
        default_rank: k.
        other_rank: of a looser fit, which a search tries.
        other_penalty: λ with it.
        penalty: λ.
        weight: how the rows of D are weighted.
        kind: of the writer; the MLP's is some four times as wide at its input, and best read with `most_tokens`.
        most_tokens: fit to an even sample of so many tokens where there are more; None: to all.
    """

    name: str = "ridge"
    default_strength: float = 2.0
    needs_bias: bool = False
    has_gates: bool = False
    scores_layers: bool = False
    default_rank: int = 4
    other_rank: int = 16
    other_penalty: float = 0.003
    penalty: float = 0.01
    weight: Weight | None = "disagreement"
    kind: SiteKind = "attn_write"
    most_tokens: int | None = None

    def sites(self, architecture: Architecture, layers: Sequence[int]) -> list[Site]:
        """The writer in each layer.

        Raises:
            BadInputError: a layer has no such map, or a mixture of experts, which has no one input.
        """
        for layer in layers:
            if "input" not in architecture.linear_site(self.kind, layer).legal_reads:
                raise BadInputError(
                    f"ridge cannot be fitted at {Site(self.kind, layer)}: every expert has an input of its own; use "
                    "attn_write"
                )
        return [Site(self.kind, layer) for layer in layers]

    @property
    def default_penalty(self) -> float:
        """λ where none is given."""
        return self.penalty

    def spec(self, site: Site, seed: int = 0) -> MomentsSpec:
        """What is recorded at a site: ZᵀZ and ZᵀD, or Z and D, with D = good - bad, twice the D of the derivation."""
        return MomentsSpec(
            site,
            key=Reading("plain", "input"),
            plus=Reading("good", "output"),
            minus=Reading("bad", "output"),
            answer="good",
            tokens="shared",
            weight=self.weight,
            rows_if_fewer=True,
            most_tokens=self.most_tokens,
            seed=0 if self.most_tokens is None else seed,
        )

    def fit(
        self, capture: CaptureFunction, architecture: Architecture, layers: Sequence[int], settings: MethodSettings
    ) -> FitResult:
        """One edit a layer, which reads the input of its map; all layers are fitted to the unedited model.

        Raises:
            BadInputError: as `fit_ridge`.
        """
        gamma = self.default_strength if settings.strength is None else settings.strength
        specs = {site: self.spec(site, settings.seed) for site in self.sites(architecture, layers)}
        statistics = capture(list(specs.values()))
        edits = []
        reports = []
        for site, spec in specs.items():
            fit, tokens = fit_recorded(
                statistics, spec, settings, default_rank=self.default_rank, penalty=self.default_penalty
            )
            edit = Edit(
                site,
                left=fit.left,
                right=fit.right / 2.0,
                reads="input",
                strength=gamma,
                objective=settings.objective,
            )
            edits.append(edit)
            reports.append(SiteReport(site, fit.figures(tokens, factor=0.5, strength=gamma)))
        return FitResult(tuple(edits), tuple(reports))


RIDGE: Final = Ridge()
