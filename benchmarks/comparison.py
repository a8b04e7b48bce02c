"""The comparison of all methods on one world: which cells it needs, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.cells import Cell, Measured
from benchmarks.figures import Figures, Run
from benchmarks.subjects import BAKED, BASE, PAIRS, REFERENCES, SUBJECTS, TUNED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.world_folder import WorldFolder

    Get = Callable[[Cell], Measured | None]

PAIRS_CELL_SAMPLES: Final = 1


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        seeds: of pairs and samples.
        samples: answers to each held-out query, for the untuned default.
        grid_samples: answers to each query of the first half, for each strength of a grid.
        picked_samples: answers to each query of the second half, for the strength picked.
        subjects: names of the methods.
    """

    seeds: tuple[int, ...]
    samples: int
    grid_samples: int
    picked_samples: int
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class MethodFigures:
    """One method on one world.

    Attributes:
        default_strength: the untuned one.
        refused: why it made no edit, or None.
        default: at the default, on all held-out queries.
        default_second_half: at the default, on the queries that the picked strength is scored on.
        picked: at the strength picked on the first half, for each seed its own, on the second half.
        grid: by strength, on the first half.
    """

    default_strength: float
    refused: str | None = None
    default: Figures | None = None
    default_second_half: Figures | None = None
    picked: Figures | None = None
    grid: tuple[tuple[float, Figures], ...] = ()


@dataclass(frozen=True)
class WorldFigures:
    """Everything about one world; what is not yet measured is left out."""

    name: str
    pairs: Figures | None
    references: dict[str, Figures]
    baked: Figures | None
    methods: dict[str, MethodFigures]


@dataclass(frozen=True)
class Comparison:
    """Cells of one world, and the figures they give."""

    world: WorldFolder
    sizes: Sizes

    def default_cells(self) -> list[Cell]:
        """References and untuned defaults, seed by seed; one method also as a baked checkpoint."""
        cells = []
        for seed in self.sizes.seeds:
            cells.append(self._pairs(seed))
            cells += [self._all(name, None, seed) for name in REFERENCES]
            cells += [self._all(name, _default(name), seed) for name in self.sizes.subjects]
        if BAKED in self.sizes.subjects:
            cells.append(self._baked())
        return cells

    def grid_cells(self) -> list[Cell]:
        """Every strength of every grid on the first half."""
        return [
            self._grid(name, strength, seed)
            for seed in self.sizes.seeds
            for name in self.sizes.subjects
            for strength in SUBJECTS[name].grid
        ]

    def picked_cells(self, get: Get) -> list[Cell]:
        """The best strength of each finished grid, on the second half."""
        cells = []
        for seed in self.sizes.seeds:
            for name in self.sizes.subjects:
                strength = self._pick(name, seed, get)
                if strength is not None:
                    cells.append(self._picked(name, strength, seed))
        return cells

    def figures(self, get: Get) -> WorldFigures:
        """What the finished cells add up to."""
        everything = tuple(range(len(self.world.held_out)))
        references = {
            name: figures
            for name in REFERENCES
            if (figures := self._of([self._all(name, None, seed) for seed in self.sizes.seeds], get, everything))
        }
        pairs_places = tuple(range(len(self.world.asked.queries)))
        baked = self._baked()
        return WorldFigures(
            name=self.world.name,
            pairs=self._of([self._pairs(seed) for seed in self.sizes.seeds], get, pairs_places),
            references=references,
            baked=self._of([baked], get, everything, self._frame(get, everything)),
            methods={name: self._method(name, get) for name in self.sizes.subjects},
        )

    def _method(self, name: str, get: Get) -> MethodFigures:
        default = _default(name)
        everything = tuple(range(len(self.world.held_out)))
        first, second = self.world.first_half, self.world.second_half
        cells = [self._all(name, default, seed) for seed in self.sizes.seeds]
        refusals = [found.refused for cell in cells if (found := get(cell)) and found.refused]
        picks = [(seed, self._pick(name, seed, get)) for seed in self.sizes.seeds]
        picked = [(self._picked(name, strength, seed), strength) for seed, strength in picks if strength is not None]
        grid = []
        for strength in SUBJECTS[name].grid:
            at = [self._grid(name, strength, seed) for seed in self.sizes.seeds]
            figures = self._of(at, get, tuple(range(len(first))), self._frame(get, first))
            if figures is not None:
                grid.append((strength, figures))
        return MethodFigures(
            default_strength=default,
            refused=refusals[0] if refusals else None,
            default=self._of(cells, get, everything, self._frame(get, everything)),
            default_second_half=self._of(cells, get, second, self._frame(get, second)),
            picked=self._of([cell for cell, _ in picked], get, tuple(range(len(second))), self._frame(get, second)),
            grid=tuple(grid),
        )

    def _frame(self, get: Get, places: tuple[int, ...]) -> tuple[float, float] | None:
        """Rates of base and tuned model, all seeds pooled."""
        base, tuned = (
            self._of([self._all(name, None, seed) for seed in self.sizes.seeds], get, places) for name in (BASE, TUNED)
        )
        return None if base is None or tuned is None else (base.rate.value, tuned.rate.value)

    def _of(
        self,
        cells: Sequence[Cell],
        get: Get,
        places: tuple[int, ...],
        frame: tuple[float, float] | None = None,
    ) -> Figures | None:
        """Figures of the cells that are finished and were not refused."""
        found = [(cell, measured) for cell in cells if (measured := get(cell)) and measured.refused is None]
        if not found:
            return None
        runs = [Run(measured, cell.samples, places) for cell, measured in found]
        strengths = [cell.strength for cell, _ in found if cell.strength is not None]
        return Figures.of(runs, frame=frame, strengths=strengths)

    def _pick(self, name: str, seed: int, get: Get) -> float | None:
        """The strength with most good answers on the first half, the gentlest of equals; None: grid unfinished."""
        rated: list[tuple[int, float, float]] = []
        for strength in SUBJECTS[name].grid:
            measured = get(self._grid(name, strength, seed))
            if measured is None:
                return None
            if measured.refused is None:
                rated.append((-sum(measured.good), abs(strength), strength))
        return min(rated)[2] if rated else None

    def _pairs(self, seed: int) -> Cell:
        return Cell(self.world.name, PAIRS, None, seed, "all", PAIRS_CELL_SAMPLES)

    def _all(self, name: str, strength: float | None, seed: int) -> Cell:
        return Cell(self.world.name, name, strength, seed, "all", self.sizes.samples)

    def _baked(self) -> Cell:
        seed = self.sizes.seeds[0]
        return Cell(self.world.name, BAKED, _default(BAKED), seed, "all", self.sizes.samples, baked=True)

    def _grid(self, name: str, strength: float, seed: int) -> Cell:
        return Cell(self.world.name, name, strength, seed, "first_half", self.sizes.grid_samples)

    def _picked(self, name: str, strength: float, seed: int) -> Cell:
        return Cell(self.world.name, name, strength, seed, "second_half", self.sizes.picked_samples)


def _default(name: str) -> float:
    return SUBJECTS[name].method.default_strength
