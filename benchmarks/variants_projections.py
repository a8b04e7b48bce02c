"""Variants that remove the mean difference of the personas: by an orthogonal projection, and by one that is whitened.

At the output y of each MLP writer, over the shared tokens of the pairs, with d = mean after the good persona - mean
after the bad one and s the strength:

    orthogonal          y <- y - s d dᵀ y / ‖d‖²
    whitened            y <- y - s d dᵀ Σ⁻¹ y / (dᵀ Σ⁻¹ d)
    whitened, centred   y <- y - s d dᵀ Σ⁻¹ (y - m) / (dᵀ Σ⁻¹ d)

The second is the oblique projection of LEACE (Belrose et al., arXiv 2306.03819): of all that make d's part of y vanish
it moves y least, measured by Σ⁻¹. Σ and m are covariance and mean over the pairs' tokens after both personas and the
tokens of neutral texts. With s < 0 what would be removed grows instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from alignez_bake.capture.recorder import MapReading
from alignez_bake.capture.spec import Reading, RowsSpec
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.methods.answer_rows import mlp_write_sites
from benchmarks.variants_bed import Made

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.site import Site
    from benchmarks.variants_bed import VariantBed

    Float64Array = NDArray[np.float64]

Kind = Literal["orthogonal", "whitened", "centred"]

_SHRINKAGE: Final = 1e-3
"""Of Σ towards a multiple of the identity, so that it can be inverted whatever the model."""


def projected(bed: VariantBed, kind: Kind, strength: float) -> Made:
    """One edit a layer.

    Raises:
        BadInputError: the architecture has no such writer.
    """
    readings = bed.readings()
    sites = mlp_write_sites(bed.lm.architecture, bed.layers)
    specs = {
        site: tuple(RowsSpec(site, Reading(persona, "output"), "good", "shared") for persona in ("good", "bad"))
        for site in sites
    }
    found = readings.captures[bed.objective.name]([spec for both in specs.values() for spec in both]).rows
    edits = []
    for site, (good, bad) in specs.items():
        neutral = bed.neutral_rows(MapReading(site, "output"))
        edit = removal(site, found[good].values, found[bad].values, neutral, kind)
        edits.append(edit.scaled(strength))
    return Made(bed.lm, EditPlan(tuple(edits)), readings.filters[bed.objective.name].kept)


def removal(site: Site, good: Float64Array, bad: Float64Array, neutral: Float64Array, kind: Kind) -> Edit:
    """The projection of s = 1.

    Args:
        site: whose output is edited.
        good: rows [n, d] after the good persona.
        bad: the same after the bad one.
        neutral: rows [m, d] of neutral texts.
        kind: as the module docstring has it.
    """
    difference = good.mean(axis=0) - bad.mean(axis=0)
    if kind == "orthogonal":
        reads = difference
    else:
        everything = np.concatenate([good, bad, neutral])
        covariance = np.cov(everything, rowvar=False)
        covariance += _SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        reads = np.linalg.solve(covariance, difference)
    left = -difference / (difference @ reads)
    bias = -left * (reads @ everything.mean(axis=0)) if kind == "centred" else None
    return Edit(site, left=left[:, None], right=reads[:, None], bias=bias)
