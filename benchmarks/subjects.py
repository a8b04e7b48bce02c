"""What is compared: the methods with the strengths they are tried at, and the models that frame them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.methods.registry import METHODS
from alignez_bake.methods.ridge import Ridge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.methods.protocol import Method

BASE: Final = "base"
PROMPTED: Final = "base, good persona"
TUNED: Final = "tuned"
PAIRS: Final = "pairs, good side"
REFERENCES: Final = (BASE, PROMPTED, TUNED)
BAKED: Final = "ridge"
"""The method whose first seed is also baked, written, and loaded from disk."""


@dataclass(frozen=True)
class Subject:
    """A method under test.

    Attributes:
        method: with its untuned default strength.
        grid: strengths to pick from; the default is one of them.
    """

    method: Method
    grid: tuple[float, ...]


SUBJECTS: Final[Mapping[str, Subject]] = {
    "ridge": Subject(METHODS["ridge"], (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)),
    # The same without weights of disagreement: what they are worth.
    "ridge_unweighted": Subject(Ridge(name="ridge_unweighted", weight=None), (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)),
    "residual_ridge": Subject(METHODS["residual_ridge"], (0.75, 1.0, 1.125, 1.25, 1.5, 2.0)),
    "contrastive_decoding": Subject(METHODS["contrastive_decoding"], (1.0, 1.5, 2.0, 3.0, 4.0)),
    "alignez_v1": Subject(METHODS["alignez_v1"], (0.0, 0.5, 1.0, 2.0, 4.0)),
    "alignez_v2": Subject(METHODS["alignez_v2"], (-1.0, 0.25, 0.5, 1.0, 2.0)),
    "ccs": Subject(METHODS["ccs"], (0.0, 0.5, 1.0, 2.0, 4.0)),
    "mean_difference": Subject(METHODS["mean_difference"], (-1.0, 0.5, 1.0, 1.5, 2.0)),
    "shift": Subject(METHODS["shift"], (0.25, 0.5, 1.0, 2.0, 4.0)),
}
