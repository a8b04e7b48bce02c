"""Tables of `benchmarks.variants`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from alignez_bake.evaluation.rates import gap_closed
from benchmarks.figures import Spread
from benchmarks.markdown import markdown_table
from benchmarks.subjects import BASE, REFERENCES, TUNED
from benchmarks.variants_tried import VARIANTS, YARDSTICK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.cells import Cell, Measured

    Found = Mapping[Cell, Measured]


class Row(NamedTuple):
    """A subject in one world.

    Attributes:
        good: per cent good answers, over seeds.
        gap: per cent closed, each seed in its own frame.
        beyond: its gap less that of the yardstick with the same seed, in points; empty where there is none.
        loss: on good documents.
        kl: on neutral texts.
        seconds: of the processor, for recording and fit.
        pairs: fitted to.
    """

    good: tuple[float, ...]
    gap: tuple[float, ...]
    beyond: tuple[float, ...]
    loss: tuple[float, ...]
    kl: tuple[float, ...]
    seconds: tuple[float, ...]
    pairs: tuple[int, ...]


def rows_of(found: Found) -> dict[tuple[str, str], Row]:
    """Figures by world and subject; what is not measured, or was refused, has no row."""
    by_key: dict[tuple[str, str], list[Cell]] = {}
    for cell, measured in found.items():
        if measured.refused is None:
            by_key.setdefault((cell.world, cell.subject), []).append(cell)
    rates = {
        (cell.world, cell.subject, cell.seed): sum(measured.good) / (cell.samples * len(measured.good))
        for cell, measured in found.items()
        if measured.refused is None
    }

    def gap(world: str, subject: str, seed: int) -> float | None:
        frame = [rates.get((world, each, seed)) for each in (BASE, subject, TUNED)]
        base, own, tuned = frame
        return None if base is None or own is None or tuned is None else gap_closed(base, own, tuned)

    rows = {}
    for (world, subject), cells in by_key.items():
        gaps = [(gap(world, subject, cell.seed), gap(world, YARDSTICK, cell.seed)) for cell in cells]
        all_measured = [found[cell] for cell in cells]
        rows[world, subject] = Row(
            good=tuple(100.0 * rates[world, subject, cell.seed] for cell in cells),
            gap=tuple(own for own, _ in gaps if own is not None),
            beyond=tuple(own - other for own, other in gaps if own is not None and other is not None),
            loss=tuple(each.loss for each in all_measured if each.loss is not None),
            kl=tuple(each.kl for each in all_measured if each.kl is not None),
            seconds=tuple(each.seconds["fit"] for each in all_measured if each.seconds is not None),
            pairs=tuple(each.pairs for each in all_measured if each.pairs is not None),
        )
    return rows


def variants_tables(found: Found, worlds: Sequence[str], variants: Sequence[str]) -> list[str]:
    """All worlds side by side, then each by itself, then what was refused.

    Args:
        found: what is measured.
        worlds: their names.
        variants: in the order of the rows.
    """
    rows = rows_of(found)
    tried = {cell.subject for cell in found}
    subjects = [*REFERENCES, *(each for each in variants if each in tried)]
    lines = ["### All worlds", "", _overview(rows, worlds, [each for each in subjects if each not in (BASE, TUNED)])]
    for world in worlds:
        lines += ["", f"### {world}", "", _world(rows, world, subjects)]
    refused = {
        (cell.world, cell.subject): measured.refused for cell, measured in found.items() if measured.refused is not None
    }
    lines += ["", *(f"No edit by {subject} in {world}: {reason}." for (world, subject), reason in refused.items())]
    missing = [each for each in variants if each not in tried]
    return [*lines, *([f"Not measured: {'; '.join(missing)}."] if missing else [])]


def _overview(rows: Mapping[tuple[str, str], Row], worlds: Sequence[str], subjects: Sequence[str]) -> str:
    columns = (
        "tried for",
        "variant",
        *(f"gap closed, %: {world}" for world in worlds),
        *(f"KL: {world}" for world in worlds),
        f"points beyond {YARDSTICK}, all runs",
        "better in",
    )
    lines = []
    for subject in subjects:
        own = [rows.get((world, subject)) for world in worlds]
        beyond = [each for row in own if row is not None for each in row.beyond]
        lines.append(
            (
                VARIANTS[subject].group if subject in VARIANTS else "reference",
                subject,
                *(_spread(row.gap if row else (), 1) for row in own),
                *(_mean(row.kl if row else (), 4) for row in own),
                "-" if subject == YARDSTICK else _spread(beyond, 1),
                "-" if subject == YARDSTICK or not beyond else f"{sum(x > 0 for x in beyond)} of {len(beyond)}",
            )
        )
    return markdown_table(columns, lines)


def _world(rows: Mapping[tuple[str, str], Row], world: str, subjects: Sequence[str]) -> str:
    columns = (
        "variant",
        "good answers, %",
        "gap closed, %",
        "KL on neutral texts",
        "loss on good documents",
        "pairs",
        "processor s",
    )
    lines = []
    for subject in subjects:
        row = rows.get((world, subject))
        if row is None:
            continue
        lines.append(
            (
                subject,
                ", ".join(f"{good:.1f}" for good in row.good),
                "-" if subject in (BASE, TUNED) else _spread(row.gap, 1),
                _spread(row.kl, 4),
                _spread(row.loss, 4),
                ", ".join(map(str, row.pairs)) or "-",
                _mean(row.seconds, 1),
            )
        )
    return markdown_table(columns, lines)


def _spread(values: Sequence[float], digits: int) -> str:
    return Spread.of(values).text(digits) if values else "-"


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{sum(values) / len(values):.{digits}f}" if values else "-"
