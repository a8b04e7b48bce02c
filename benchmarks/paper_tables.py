"""The paper's table from the cells of `benchmarks.paper`, and what keeps its figures from being the paper's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks.markdown import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAPER_DATASETS: Final = 6
PAPER_ARCHITECTURES: Final = 3
NOT_COMPARABLE: Final = (
    "The paper's 31.6 % on average is of its own models, data sets and judge: these figures are not comparable with it."
)


@dataclass(frozen=True)
class Cell:
    """One model on one data set in one aspect.

    Attributes:
        model: its name.
        dataset: its name.
        aspect: what was judged.
        ours: net win over the base in per cent, with `value`, `low` and `high` of the 95 % interval; None: no verdict.
        tuned: that of the tuned model.
        nothing_helps: why the choice of an edit found none, so that `ours` is of the base's own answers; else None.
    """

    model: str
    dataset: str
    aspect: str
    ours: Mapping[str, float] | None
    tuned: Mapping[str, float] | None
    nothing_helps: str | None = None

    @property
    def relative_improvement(self) -> float | None:
        """100 · net win of ours / net win of the tuned model; None where that one does not win beyond its interval."""
        if self.ours is None or self.tuned is None or self.tuned["low"] <= 0:
            return None
        return 100 * self.ours["value"] / self.tuned["value"]

    def to_json(self) -> dict[str, Any]:
        """The cell as JSON values."""
        return {**asdict(self), "relative_improvement": self.relative_improvement}


def paper_table(cells: Sequence[Cell]) -> str:
    """One row a cell, the mean of the relative improvements that can be stated, and which bases stayed as they are."""
    rows = [
        (
            f"{cell.model}, {cell.dataset}, {cell.aspect}",
            _net(cell.ours) if cell.nothing_helps is None else f"{_net(cell.ours)}, the base itself",
            _net(cell.tuned),
            "no gap" if cell.relative_improvement is None else f"{cell.relative_improvement:.1f}",
        )
        for cell in cells
    ]
    stated = [cell.relative_improvement for cell in cells if cell.relative_improvement is not None]
    if stated:
        rows.append((f"mean of {len(stated)} of {len(cells)}", "", "", f"{sum(stated) / len(stated):.1f}"))
    columns = (
        "model, data set, aspect",
        "ours over the base: net win, %",
        "tuned over the base: net win, %",
        "relative improvement, %",
    )
    unaided = [
        f"{cell.model}, {cell.dataset}, {cell.aspect}: no edit is better than the base, so its own answers are counted "
        f"as ours: {cell.nothing_helps}."
        for cell in cells
        if cell.nothing_helps is not None
    ]
    table = markdown_table(columns, rows)
    return "\n".join([table, "", *unaided]) if unaided else table


def deviations(model_types: Sequence[str], datasets: int, *, by_server: bool, samples: int) -> list[str]:
    """Sentences that must stand under the table.

    Args:
        model_types: architecture of each model.
        datasets: how many.
        by_server: whether a language model judges.
        samples: answers to each query.
    """
    notes = [NOT_COMPARABLE]
    architectures = len(set(model_types))
    if architectures < PAPER_ARCHITECTURES:
        notes.append(f"Architectures: {architectures}; the paper has {PAPER_ARCHITECTURES}.")
    if datasets < PAPER_DATASETS:
        notes.append(f"Data sets: {datasets}; the paper has {PAPER_DATASETS}.")
    if not by_server:
        notes.append("Judged by a function or classifier; the paper's judge is a language model that compares answers.")
    if samples > 1:
        notes.append(f"Answers to each query: {samples}; intervals resample queries.")
    return notes


def _net(net: Mapping[str, float] | None) -> str:
    return "no verdict" if net is None else f"{net['value']:.1f} [{net['low']:.1f}, {net['high']:.1f}]"
