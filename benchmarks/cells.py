"""One figure at a time: what a cell of the tables is, and the folder where finished ones are kept."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

Part = Literal["all", "first_half", "second_half"]


@dataclass(frozen=True)
class Cell:
    """One model, measured once.

    Attributes:
        world: name of the world.
        subject: a method, or one of `subjects.REFERENCES`.
        strength: of the method; None for a reference.
        seed: of the pairs and of the samples.
        part: which held-out queries.
        samples: answers to each of them.
        baked: folded into a checkpoint and loaded from disk, rather than run through hooks.
    """

    world: str
    subject: str
    strength: float | None
    seed: int
    part: Part
    samples: int
    baked: bool = False

    @property
    def file_name(self) -> str:
        """Readable, and another one for every cell."""
        parts = [self.world, self.subject, f"{self.strength}", f"seed{self.seed}", self.part, f"{self.samples}x"]
        return re.sub(r"[^\w.-]+", "_", "-".join([*parts, *(["baked"] if self.baked else [])])) + ".json"


@dataclass(frozen=True)
class Measured:
    """What was found; all None but `refused` where the method found nothing to edit.

    Attributes:
        refused: why there is no figure, or None.
        good: for each query of the part, in order, how many of its answers the judge called good.
        loss: on good documents, nats a token.
        kl: from the base on neutral texts, nats a token.
        seconds: of `capture` and `fit`, for a method; `pairs` where they were made for this cell.
        load: the machine's load average at the end, which says what the seconds are worth.
        delivered_share: the lowest of a baked model's tensors.
        chosen: where method and strength are chosen, the candidate; the base's own name where none is better.
        pairs: that it was fitted to, where variants use different ones.
    """

    refused: str | None = None
    good: tuple[int, ...] = ()
    loss: float | None = None
    kl: float | None = None
    seconds: dict[str, float] | None = None
    load: float | None = None
    delivered_share: float | None = None
    chosen: str | None = None
    pairs: int | None = None


class CellStore:
    """Finished cells as files, so that an interrupted run goes on where it stopped."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Open the folder, or make it.

        Args:
            folder: of the run.
            settings: everything that the figures depend on beside what a cell says.

        Raises:
            SystemExit: the folder holds cells that were measured with other settings.
        """
        self._folder = folder / "cells"
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "settings.json"
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{self._folder} holds figures of other models or settings: use another --out")
        file.write_text(text, encoding="utf-8")

    def get(self, cell: Cell) -> Measured | None:
        """The figures of a cell, or None if it is still to be measured."""
        file = self._folder / cell.file_name
        if not file.is_file():
            return None
        values = json.loads(file.read_text(encoding="utf-8"))["measured"]
        return Measured(**{**values, "good": tuple(values["good"])})

    def put(self, cell: Cell, measured: Measured) -> None:
        """Keep the figures of a cell; the file appears whole or not at all."""
        file = self._folder / cell.file_name
        growing = file.with_suffix(".part")
        growing.write_text(json.dumps({"cell": asdict(cell), "measured": asdict(measured)}) + "\n", encoding="utf-8")
        growing.replace(file)
