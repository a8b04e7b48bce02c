"""How much of an edit survives rounding, summed up some rows at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.lowering.fold import Delivery

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.lowering.fold import FoldedTensor
    from alignez_bake.onnx_patch.fold_site import FoldedWeight


class DeliverySums:
    """The sums of `lowering.fold.delivery` over the blocks of one weight.

    All squares are in units of a bound of the largest change, so that none overflows or vanishes.
    """

    def __init__(self, weight: FoldedWeight) -> None:
        """Begin with nothing summed."""
        self._name = weight.name
        rank = max(weight.left.shape[1], 1)
        self._unit = float(np.abs(weight.left).max(initial=0.0) * np.abs(weight.right).max(initial=0.0) * rank)
        self._along = self._asked = self._lost = self._base = 0.0

    def add(self, block: FoldedTensor, stored: NDArray[Any]) -> None:
        """Sum up a block, given what was stored of it, in the same layout."""
        base = block.base.reshape(-1)
        if not self._unit:
            self._base += float(base @ base)
            return
        values = stored.astype(np.float64).reshape(-1)
        exact = block.exact.reshape(-1)
        asked, got, lost = (exact - base) / self._unit, (values - base) / self._unit, (values - exact) / self._unit
        scaled = base / self._unit
        self._along += float(got @ asked)
        self._asked += float(asked @ asked)
        self._lost += float(lost @ lost)
        self._base += float(scaled @ scaled)

    def result(self) -> Delivery:
        """The figures of the whole weight."""
        if not self._asked:
            return Delivery(self._name, None, None, 0.0 if self._base else None)
        return Delivery(
            self._name,
            share=self._along / self._asked,
            residual=float(np.sqrt(self._lost / self._asked)),
            relative_change=float(np.sqrt(self._asked / self._base)) if self._base else None,
        )
