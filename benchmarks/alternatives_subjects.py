"""What is compared with what: ours, and what a user would do instead, from the same pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.asked_fit import AUTO
from benchmarks.alternatives_distillation import DistillationSettings
from benchmarks.subjects import BASE, PROMPTED, TUNED
from examples.preference_tuning import DpoSettings, LoraShape

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Ours:
    """A method of this tool, baked and loaded from disk.

    Attributes:
        method: its name, at its own default strength; or `auto`, which chooses method and strength.
    """

    method: str


@dataclass(frozen=True)
class Alternative:
    """One row.

    Attributes:
        group: rows of one group differ in the length of training alone, and are one line of the plot.
        training: how the model is made of the pairs; None: nothing is made.
        needs: what it takes beside the base and its pairs.
    """

    group: str
    training: Ours | DistillationSettings | DpoSettings | None
    needs: str


_ALL: Final = LoraShape(16)
_WRITERS: Final = LoraShape(4, ("o_proj",))


def _distilled(epochs: int, lora: LoraShape, learning_rate: float) -> DistillationSettings:
    return DistillationSettings(epochs=epochs, learning_rate=learning_rate, lora=lora)


def _dpo(epochs: int, learning_rate: float) -> DpoSettings:
    return DpoSettings(epochs=epochs, learning_rate=learning_rate, lora=_ALL)


ALTERNATIVES: Final[Mapping[str, Alternative]] = {
    BASE: Alternative(BASE, None, ""),
    PROMPTED: Alternative(PROMPTED, None, "its tokens before every query"),
    TUNED: Alternative(TUNED, None, "labels, gradients"),
    AUTO: Alternative(AUTO, Ours(AUTO), "forward passes, answers to a third of the queries"),
    "contrastive_decoding": Alternative("contrastive_decoding", Ours("contrastive_decoding"), "forward passes"),
    "ridge": Alternative("ridge", Ours("ridge"), "forward passes"),
    "residual_ridge": Alternative("residual_ridge", Ours("residual_ridge"), "forward passes"),
    **{
        f"distilled, all maps, rank 16, {epochs} epochs": Alternative(
            "distilled, all maps, rank 16", _distilled(epochs, _ALL, 1e-3), "gradients"
        )
        for epochs in (1, 3, 10)
    },
    "distilled, o_proj, rank 4, 3 epochs": Alternative(
        "distilled, o_proj, rank 4", _distilled(3, _WRITERS, 3e-3), "gradients"
    ),
    **{
        f"DPO, all maps, rank 16, {epochs} epochs": Alternative(
            "DPO, all maps, rank 16", _dpo(epochs, 1e-3), "gradients"
        )
        for epochs in (1, 3, 5)
    },
    "DPO, a third of the rate, 5 epochs": Alternative("DPO, a third of the rate", _dpo(5, 3e-4), "gradients"),
}
"""How learning rates and lengths were come by: docs/decisions/alternatives.md."""
