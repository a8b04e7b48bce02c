"""What the maps of a model read and give on texts that its edits should leave alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import torch

from alignez_bake.capture.recorder import record
from alignez_bake.lowering.hooks import edited_by_hooks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from alignez_bake.capture.recorder import MapReading
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel

    Float32Array = NDArray[np.float32]

MOST_TOKENS: Final = 2048
"""Of all texts together: half as many as the last layer is fitted to, and every recording reads them once more."""


def chosen_texts(sequences: Sequence[Sequence[int]], most_tokens: int = MOST_TOKENS) -> list[Sequence[int]]:
    """Every so manieth text, as many as have about `most_tokens` tokens; all where there are fewer.

    Args:
        sequences: token ids.
        most_tokens: of those that are chosen.
    """
    total = sum(map(len, sequences))
    step = max(1, -(-total // most_tokens))
    return list(sequences[::step])


def rows_left_alone(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    readings: Sequence[MapReading],
    plan: EditPlan | None,
    *,
    batch_size: int,
) -> Mapping[MapReading, Float32Array]:
    """Rows of all tokens of some texts, for each reading [tokens, width], in the order of the texts.

    Args:
        lm: the model.
        sequences: token ids of the texts.
        readings: which sides of which maps.
        plan: edits that are in place; None: none.
        batch_size: texts that run together.

    Raises:
        BadInputError: a site or a reading that the model does not have.
    """
    editing = nullcontext() if plan is None else edited_by_hooks(lm.model, lm.architecture, plan)
    rows: dict[MapReading, list[torch.Tensor]] = {reading: [] for reading in readings}
    with editing:
        for first in range(0, len(sequences), batch_size):
            batch = sequences[first : first + batch_size]
            lengths = [len(sequence) for sequence in batch]
            found = record(lm, batch, dict.fromkeys(readings, lengths))
            for reading in readings:
                rows[reading].append(found.values[reading].to("cpu", torch.float32))
    return {reading: torch.cat(parts).numpy() for reading, parts in rows.items()}
