"""Random edits that move their site by a clear margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignez_bake.edit import Edit

if TYPE_CHECKING:
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.site import Site


def random_edit(
    site: Site,
    d_out: int,
    d_read: int,
    *,
    reads: str = "output",
    rank: int = 2,
    constant: bool = False,
    seed: int = 0,
    scale: float = 0.5,
    objective: str | None = None,
) -> Edit:
    """A linear edit whose effect has about `scale` times the size of what it reads; `constant` adds s and c."""
    rng = np.random.default_rng([seed, d_out, d_read, rank])
    return Edit(
        site=site,
        left=rng.normal(size=(d_out, rank)) / np.sqrt(d_out),
        right=scale * rng.normal(size=(d_read, rank)) * np.sqrt(d_out / d_read / rank),
        offset=rng.normal(size=rank) if constant else None,
        bias=0.2 * rng.normal(size=d_out) if constant else None,
        reads=reads,
        objective=objective,
    )


def edit_for_slot(
    slot: Slot, *, reads: str = "output", constant: bool = False, seed: int = 0, scale: float = 0.5
) -> Edit:
    """A random edit of the widths of a slot."""
    d_read = slot.d_in if reads == "input" else slot.d_out
    return random_edit(slot.site, slot.d_out, d_read, reads=reads, constant=constant, seed=seed, scale=scale)
