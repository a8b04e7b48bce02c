"""What a graph's inputs and outputs are called. No torch: whoever runs a graph needs the names too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INPUT_IDS: Final = "input_ids"
ATTENTION_MASK: Final = "attention_mask"
POSITION_IDS: Final = "position_ids"
LOGITS: Final = "logits"

BATCH: Final = "batch_size"
LENGTH: Final = "sequence_length"
PAST: Final = "past_sequence_length"
TOTAL: Final = "total_sequence_length"
"""Names of axes: new tokens, cached ones, and both together, which is the width of the mask."""


@dataclass(frozen=True)
class GraphNames:
    """Names of a graph's inputs and outputs, as optimum has them.

    Attributes:
        layers: how many layers have a cache.
    """

    layers: int

    @property
    def past(self) -> tuple[str, ...]:
        """Inputs of the cache, key before value, layer after layer; [batch, heads, past, width]."""
        return self._of_cache("past_key_values")

    @property
    def present(self) -> tuple[str, ...]:
        """Outputs of the cache, in the order of `past`; [batch, heads, past + new, width]."""
        return self._of_cache("present")

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs; the first three are int64."""
        return (INPUT_IDS, ATTENTION_MASK, POSITION_IDS, *self.past)

    @property
    def outputs(self) -> tuple[str, ...]:
        """All outputs; the first is [batch, new, vocabulary]."""
        return (LOGITS, *self.present)

    def _of_cache(self, prefix: str) -> tuple[str, ...]:
        return tuple(f"{prefix}.{layer}.{part}" for layer in range(self.layers) for part in ("key", "value"))
