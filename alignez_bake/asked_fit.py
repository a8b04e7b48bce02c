"""How edits are asked for: one record of what `align` and `fit` are told, before any base is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathlib import Path

AUTO: Final = "auto"
Strength = float | Literal["auto"] | None


@dataclass(frozen=True)
class AskedFit:
    """What was asked for, as it was given; `tuning.offered.check_settings` checks it against a base.

    A choice of an edit also chooses what is None of layers, rank and penalty.

    Attributes:
        method: by name; `auto`: method and strength are to be chosen.
        strength: a number; `auto`: to be chosen; None: `auto` where the method is, else the method's default.
        layers: such as `4-20`; None: all.
        rank: of each edit; None: the method's default.
        penalty: λ of the method's ridge; None: the method's default.
        seed: of everything that is drawn.
        positions: which rows of each forward call to edit, `all` or `last`.
        gated: whether to use the method's gates.
        top_layers: how many of the layers to edit, or `auto`; None: all.
        joint: whether several objectives are fitted together.
        untie: whether a head that is tied to the embedding may become a tensor of its own, to be changed as well.
        kl_budget: of a choice: most drift on neutral texts, in nats per token; None: the tuner's own.
        neutral: of a choice: a file of neutral texts; None: those that the project ships.
    """

    method: str = AUTO
    strength: Strength = None
    layers: str | None = None
    rank: int | None = None
    penalty: float | None = None
    seed: int = 0
    positions: str = "all"
    gated: bool = False
    top_layers: int | str | None = None
    joint: bool = False
    untie: bool = False
    kl_budget: float | None = None
    neutral: str | Path | None = None
