"""The part of the sequences that is fitted, and the part that shows what the fit is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.loading import LanguageModel

HELD_OUT_EVERY: Final = 4
"""Every fourth sequence is held out: whole ones, since neighbouring tokens are alike."""


class Split(NamedTuple):
    """Sequences to fit, and sequences held out."""

    fitting: list[Sequence[int]]
    held_out: list[Sequence[int]]

    @property
    def fitting_tokens(self) -> int:
        """Number of tokens to fit."""
        return sum(map(len, self.fitting))


def split(lm: LanguageModel, sequences: Sequence[Sequence[int]]) -> Split:
    """Hold out the fourth, eighth, ... sequence.

    Raises:
        BadInputError: fewer than four sequences, an empty one, or one that the model cannot read.
    """
    if len(sequences) < HELD_OUT_EVERY:
        raise BadInputError(
            f"{len(sequences)} texts to fit edits on are too few: give at least {HELD_OUT_EVERY}, of which one in "
            f"{HELD_OUT_EVERY} is held out"
        )
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) == 0:
        raise BadInputError(f"text {lengths.index(0)} to fit edits on has no token: leave it out")
    lm.check_fits(sequences)
    held_out = list(sequences[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    fitting = [sequence for place, sequence in enumerate(sequences, start=1) if place % HELD_OUT_EVERY]
    return Split(fitting, held_out)
