"""What one batch left behind in all of its passes, and how a spec takes its rows out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alignez_bake.capture.accumulators import in_float64

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.capture.recorder import MapReading
    from alignez_bake.capture.spec import Context, Reading
    from alignez_bake.site import Site


class BatchRecording:
    """Recorded ends of a batch's sequences, by site, side and context."""

    def __init__(self) -> None:
        """Nothing recorded yet."""
        self._found: dict[tuple[Site, Reading], tuple[torch.Tensor, list[int]]] = {}

    def add(
        self,
        context: Context,
        values: Mapping[MapReading, torch.Tensor],
        tails: Mapping[MapReading, list[int]],
    ) -> None:
        """Take what one pass recorded, and how many tokens of each sequence that is."""
        for place, rows in values.items():
            self._found[place.site, place.in_context(context)] = (rows, tails[place])

    def rows(self, site: Site, reading: Reading, tails: Sequence[int], *, mean: bool) -> torch.Tensor:
        """The last `tails` tokens of each sequence, [Σ tails, d], or their mean in float64, [sequences, d]."""
        values, recorded = self._found[site, reading]
        if mean:
            parts = torch.split(values, recorded)
            return torch.stack([in_float64(part[-tail:]).mean(dim=0) for part, tail in zip(parts, tails, strict=True)])
        if list(tails) != recorded:
            values = torch.cat([part[-tail:] for part, tail in zip(torch.split(values, recorded), tails, strict=True)])
        return values
