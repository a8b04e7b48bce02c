"""The table of what is tried: each variant by its name, under the question that it answers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from alignez_bake.methods.contrastive_decoding import CONTRASTIVE_DECODING
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE
from alignez_bake.methods.ridge import RIDGE
from benchmarks import variants_pairs, variants_projections, variants_readers
from benchmarks.variants_bed import STRENGTH, fitted
from benchmarks.variants_neutral import in_sight_of_neutral, with_rows, without_directions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignez_bake.site import SiteKind
    from benchmarks.variants_bed import Made, VariantBed
    from benchmarks.variants_neutral import Change

YARDSTICK: Final = "contrastive_decoding"
"""What every variant is compared with."""

_GAMMA: Final = 2.0
_NEUTRAL: Final = "neutral texts"


class Variant(NamedTuple):
    """One variant.

    Attributes:
        group: the question that it answers.
        make: fits it.
    """

    group: str
    make: Callable[[VariantBed], Made]


def _projection(kind: Literal["orthogonal", "whitened", "centred"], strength: float) -> Variant:
    return Variant("projections", partial(variants_projections.projected, kind=kind, strength=strength))


def _ridge(change: Change) -> Variant:
    return Variant(_NEUTRAL, partial(in_sight_of_neutral, method=RIDGE, strength=_GAMMA, change=change))


def _contrastive(change: Change, *, everywhere: bool = False, shipped: int | None = None) -> Variant:
    make = partial(
        in_sight_of_neutral,
        method=CONTRASTIVE_DECODING,
        strength=STRENGTH,
        change=change,
        everywhere=everywhere,
        shipped=shipped,
    )
    return Variant(_NEUTRAL, make)


def _readers(kinds: Sequence[SiteKind], gamma: float) -> Variant:
    return Variant("readers", partial(variants_readers.ridge_at, kinds=kinds, gamma=gamma))


_PROJECTED: Final = partial(without_directions, directions=16)
_ROWS: Final = partial(with_rows, worth=1.0)
_MANY_ROWS: Final = partial(with_rows, worth=10.0)

VARIANTS: Final[Mapping[str, Variant]] = {
    YARDSTICK: Variant("methods", partial(fitted, method=CONTRASTIVE_DECODING, strength=STRENGTH)),
    "contrastive_decoding, neutral rows, ρ = 1": _contrastive(_ROWS),
    "contrastive_decoding, neutral rows everywhere, ρ = 1": _contrastive(_ROWS, everywhere=True),
    "contrastive_decoding, shipped neutral rows everywhere, ρ = 1": _contrastive(_ROWS, everywhere=True, shipped=1),
    "contrastive_decoding, a third of the shipped neutral rows everywhere, ρ = 1": _contrastive(
        _ROWS, everywhere=True, shipped=3
    ),
    "contrastive_decoding, self-filtered pairs": Variant("pairs", variants_pairs.self_filtered),
    "contrastive_decoding, random subset": Variant("pairs", variants_pairs.random_subset),
    "contrastive_decoding, second round on top": Variant("pairs", variants_pairs.second_round),
    "ridge": Variant("methods", partial(fitted, method=RIDGE, strength=_GAMMA)),
    "ridge, neutral rows, ρ = 1": _ridge(_ROWS),
    "ridge, keys projected": _ridge(_PROJECTED),
    "orthogonal projection, s = 1": _projection("orthogonal", 1.0),
    "whitened projection, s = 1": _projection("whitened", 1.0),
    "ridge at gate, γ = 2": _readers(("mlp_gate",), 2.0),
    "ridge at q, k, v, γ = 2": _readers(variants_readers.ATTENTION, 2.0),
    "contrastive_decoding, readers in front": Variant("readers", variants_readers.contrastive),
    "contrastive_decoding, keys projected": _contrastive(_PROJECTED),
    "orthogonal projection, s = -1": _projection("orthogonal", -1.0),
    "whitened projection, s = -1": _projection("whitened", -1.0),
    "readers, front to back": Variant("readers", variants_readers.front_to_back),
    "ridge at gate and up, γ = 2": _readers(variants_readers.MLP, 2.0),
    "contrastive_decoding, second pairs": Variant("pairs", variants_pairs.second_pairs),
    "contrastive_decoding, neutral rows, ρ = 10": _contrastive(_MANY_ROWS),
    "centred projection, s = 1": _projection("centred", 1.0),
    "orthogonal projection, s = 2": _projection("orthogonal", 2.0),
    "whitened projection, s = 2": _projection("whitened", 2.0),
    "ridge at gate, γ = 1": _readers(("mlp_gate",), 1.0),
    "ridge at q, k, v, γ = 1": _readers(variants_readers.ATTENTION, 1.0),
    "ridge, neutral rows, ρ = 10": _ridge(_MANY_ROWS),
    "residual_ridge, s = 1": Variant("methods", partial(fitted, method=RESIDUAL_RIDGE, strength=1.0)),
}
"""In the order in which they are measured: what says most comes first."""
