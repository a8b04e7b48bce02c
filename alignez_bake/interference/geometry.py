"""What the edits of two objectives have in common, from their factors alone; no model is run.

At one site the edits of an objective are an affine map. With a row of ones appended to what is read, r~ = [r; 1], it
is one matrix of low rank

    ΔW = L Rᵀ [d_out, d_r + 1]        with L = [.., strength · L_i, strength · c_i], R = [.., [R_i; s_iᵀ], e_last],
                                      so that ΔW r~ = Σ_i strength (L_i (R_iᵀ r + s_i) + c_i)

and two of them, o and p, are compared by

    output cosines   cosines of the principal angles between the column spaces of L_o and L_p: where they write
    input cosines    the same of what they read, R without its row of constants
    edit cosine      <ΔW_o, ΔW_p> / (‖ΔW_o‖ ‖ΔW_p‖) = tr((L_oᵀL_p)(R_pᵀR_o)) / ..., of either sign

The last is formed from [k, k] matrices. Principal angles (Björck and Golub, Math. Comp. 27, 1973): with orthonormal
bases Q_o, Q_p their cosines are the singular values of Q_oᵀQ_p. All are about the weights, and say nothing of how far
the inputs that really occur lie in what is read: `interference.effects` measures that.

Entries of one objective that read the output one after the other are composed first (`edit.compose`). Of an edit with a
gate the factors are compared, as if it had none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.edit import compose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.site import Reads

    Float64Array = NDArray[np.float64]

_SMALLEST_SINGULAR_VALUE: Final = 1e-6
"""Relative to the largest: float32 factors know no direction below."""


class SiteFactors(NamedTuple):
    """ΔW = left rightᵀ of one objective at one site.

    Attributes:
        left: float64 [d_out, k].
        right: float64 [d_r + 1, k]; the last row multiplies 1.
        reads: what r is; None where entries read different things, which no one matrix is.
    """

    left: Float64Array
    right: Float64Array
    reads: Reads | None


@dataclass(frozen=True)
class SiteOverlap:
    """Two objectives at one site.

    Attributes:
        site: its name.
        edit_cosine: of the two matrices; None where they read different things or one is zero.
        output_cosines: of the principal angles between what they write, largest first.
        input_cosines: of those between what they read; empty where one reads nothing, or something else.
    """

    site: str
    edit_cosine: float | None
    output_cosines: tuple[float, ...]
    input_cosines: tuple[float, ...]


@dataclass(frozen=True)
class Overlap:
    """Two objectives over all sites that both edit.

    Attributes:
        objectives: the two names.
        edit_cosine: <ΔW_o, ΔW_p> summed over all sites, over the norms at all sites of each; None where one is zero.
        at_dials: that of w_o ΔW_o and w_p ΔW_p: the same number, its sign turned by dials of opposite signs, or None
            where a dial is 0.
        kept_at_dials: ‖Σ_o w_o ΔW_o‖ / Σ_o |w_o| ‖ΔW_o‖ of the two: 1 where they pull together, 0 where they cancel.
        output_cosine: root of the mean square of all output cosines: 1 where one writes where the other does.
        input_cosine: the same of what is read.
        sites: one by one.
    """

    objectives: tuple[str, str]
    edit_cosine: float | None
    at_dials: float | None
    kept_at_dials: float | None
    output_cosine: float | None
    input_cosine: float | None
    sites: tuple[SiteOverlap, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


def overlaps(plan: EditPlan) -> tuple[Overlap, ...]:
    """Every pair of objectives of a plan, in the plan's order; none where it has fewer than two."""
    factors = {name: _factors_of(plan, name) for name in plan.objectives}
    return tuple(
        _overlap((one, other), (factors[one], factors[other]), (_dial(plan, one), _dial(plan, other)))
        for one, other in combinations(plan.objectives, 2)
    )


def principal_cosines(one: Float64Array, other: Float64Array) -> tuple[float, ...]:
    """Cosines of the principal angles between two column spaces, largest first.

    Args:
        one: float64 [d, k].
        other: float64 [d, l].

    Returns:
        As many as the smaller of the two ranks; none where one of them is zero.
    """
    bases = [_basis(one), _basis(other)]
    if not all(basis.shape[1] for basis in bases):
        return ()
    values = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return tuple(float(value) for value in np.clip(values, 0.0, 1.0))


def site_factors(edits: Sequence[Edit]) -> SiteFactors:
    """ΔW of the entries of one objective at one site, in order, as the module says.

    Args:
        edits: at least one, all at one site.
    """
    if len(edits) > 1 and all(edit.is_linear and edit.reads == "output" for edit in edits):
        edits = [compose(edits)]
    width = max([1] + [edit.right.shape[0] for edit in edits if edit.right is not None])
    lefts, rights = [], []
    for edit in edits:
        if edit.left is not None and edit.right is not None:
            offset = np.zeros(edit.rank) if edit.offset is None else edit.offset.astype(np.float64)
            lefts.append(edit.strength * edit.left.astype(np.float64))
            rights.append(np.vstack([_padded(edit.right.astype(np.float64), width), offset]))
        if edit.bias is not None:
            lefts.append(edit.strength * edit.bias.astype(np.float64)[:, None])
            rights.append(np.append(np.zeros(width), 1.0)[:, None])
    reads = {edit.reads for edit in edits if edit.right is not None} or {edits[0].reads}
    return SiteFactors(np.hstack(lefts), np.hstack(rights), reads.pop() if len(reads) == 1 else None)


def _factors_of(plan: EditPlan, objective: str) -> dict[str, SiteFactors]:
    found = {}
    for site in plan.sites:
        groups = [group for group in plan.groups_at(site) if group.objective == objective]
        if groups:
            found[str(site)] = site_factors(groups[0].edits)
    return found


def _dial(plan: EditPlan, objective: str) -> float:
    return float(plan.weights.get(objective, 1.0))


def _overlap(
    names: tuple[str, str],
    factors: tuple[dict[str, SiteFactors], dict[str, SiteFactors]],
    dials: tuple[float, float],
) -> Overlap:
    one, other = factors
    shared = [site for site in one if site in other]
    sites = tuple(_site_overlap(site, one[site], other[site]) for site in shared)
    inner = sum(_inner(one[site], other[site]) for site in shared if _comparable(one[site], other[site]))
    norms = [float(np.sqrt(sum(_inner(found, found) for found in each.values()))) for each in factors]
    cosine = float(inner / (norms[0] * norms[1])) if shared and all(norms) else None
    turned = dials[0] * dials[1]
    at_dials = None if cosine is None or turned == 0.0 else float(np.sign(turned)) * cosine
    kept = None
    if at_dials is not None:
        scaled = [abs(dial) * norm for dial, norm in zip(dials, norms, strict=True)]
        together = scaled[0] ** 2 + scaled[1] ** 2 + 2.0 * scaled[0] * scaled[1] * at_dials
        kept = float(np.sqrt(max(together, 0.0)) / sum(scaled))
    return Overlap(
        names,
        cosine,
        at_dials,
        kept,
        _root_mean_square([value for site in sites for value in site.output_cosines]),
        _root_mean_square([value for site in sites for value in site.input_cosines]),
        sites,
    )


def _site_overlap(site: str, one: SiteFactors, other: SiteFactors) -> SiteOverlap:
    comparable = _comparable(one, other)
    norm = float(np.sqrt(_inner(one, one) * _inner(other, other)))
    return SiteOverlap(
        site,
        edit_cosine=float(_inner(one, other) / norm) if comparable and norm else None,
        output_cosines=principal_cosines(one.left, other.left),
        input_cosines=principal_cosines(one.right[:-1], other.right[:-1]) if comparable else (),
    )


def _comparable(one: SiteFactors, other: SiteFactors) -> bool:
    """Whether both matrices multiply the same thing; a pure shift reads nothing, so it is not among them."""
    return one.reads is not None and one.reads == other.reads and one.right.shape[0] == other.right.shape[0]


def _inner(one: SiteFactors, other: SiteFactors) -> float:
    """<L_o R_oᵀ, L_p R_pᵀ> = Σ (L_oᵀL_p) ∘ (R_oᵀR_p)."""
    return float(np.sum((one.left.T @ other.left) * (one.right.T @ other.right)))


def _basis(columns: Float64Array) -> Float64Array:
    vectors, values, _ = np.linalg.svd(columns, full_matrices=False)
    kept = values > _SMALLEST_SINGULAR_VALUE * max(values.max(initial=0.0), np.finfo(np.float64).tiny)
    basis: Float64Array = vectors[:, kept]
    return basis


def _padded(right: Float64Array, width: int) -> Float64Array:
    return np.vstack([right, np.zeros((width - right.shape[0], right.shape[1]))])


def _root_mean_square(values: Sequence[float]) -> float | None:
    return float(np.sqrt(np.mean(np.square(values)))) if values else None
