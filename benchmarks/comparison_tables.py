"""The comparison of methods as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.evaluation.rates import gap_closed
from benchmarks.markdown import markdown_table
from benchmarks.subjects import BAKED, BASE, PROMPTED, TUNED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.comparison import Sizes, WorldFigures
    from benchmarks.figures import Figures, Spread


def summary_table(worlds: Sequence[WorldFigures]) -> str:
    """Gap closed and KL of every method at its untuned default, a column for each world."""
    names = dict.fromkeys(name for world in worlds for name in (PROMPTED, *world.methods))
    rows = [(name, *(_summary(world, name) for world in worlds)) for name in names]
    return markdown_table(("gap closed, %; KL", *(world.name for world in worlds)), rows)


def _summary(world: WorldFigures, name: str) -> str:
    if name == PROMPTED:
        base, prompted, tuned = (world.references.get(each) for each in (BASE, PROMPTED, TUNED))
        if base is None or prompted is None or tuned is None:
            return ""
        gap = gap_closed(base.rate.value, prompted.rate.value, tuned.rate.value)
        return "" if gap is None else f"{gap:.0f}"
    method = world.methods.get(name)
    figures = None if method is None else method.default
    if figures is None or figures.gap is None or figures.kl is None:
        return "no edit" if method is not None and method.refused is not None else ""
    return f"{_text(figures.gap, 0)}; {figures.kl.mean:.4f}"


def world_tables(world: WorldFigures, sizes: Sizes) -> str:
    """All tables of one world."""
    parts = [f"### {world.name}", "", _default_table(world), "", *_notes(world, sizes)]
    if any(method.picked for method in world.methods.values()):
        parts += ["", _picked_table(world), "", _grid_table(world)]
    parts += ["", _seconds_table(world)]
    return "\n".join(parts) + "\n"


def _default_table(world: WorldFigures) -> str:
    columns = (
        "untuned default",
        "strength",
        "good answers, % [95 % interval]",
        "by seed, %",
        "gap closed, %",
        "loss on good documents",
        "KL on neutral texts",
    )
    rows = [_row(name, "", figures) for name, figures in world.references.items()]
    for name, method in world.methods.items():
        strength = f"{method.default_strength:g}"
        if method.default is not None:
            rows.append(_row(name, strength, method.default))
        elif method.refused is not None:
            rows.append((name, strength, "no edit", "", "", "", ""))
    if world.baked is not None:
        strength = f"{world.baked.strengths[0]:g}"
        rows.append(_row(f"{BAKED}, first seed, baked and loaded from disk", strength, world.baked))
    return markdown_table(columns, rows)


def _row(name: str, strength: str, figures: Figures) -> tuple[str, ...]:
    return (
        name,
        strength,
        _rate(figures),
        ", ".join(f"{100 * value:.1f}" for value in figures.by_seed),
        _text(figures.gap, 1),
        _text(figures.loss, 4),
        "0" if name == BASE else _text(figures.kl, 4),
    )


def _notes(world: WorldFigures, sizes: Sizes) -> list[str]:
    seeds = ", ".join(map(str, sizes.seeds))
    base, tuned = world.references.get(BASE), world.references.get(TUNED)
    grid = ""
    if any(method.picked for method in world.methods.values()):
        grid = f",\n{sizes.picked_samples} at the strength picked, {sizes.grid_samples} at each strength of the grid"
    notes = [
        f"Seeds {seeds}, of pairs and of samples. Answers to a query and seed: {sizes.samples} at the default{grid}.",
        "Mean (lowest to highest over seeds); intervals pool the seeds and take answers as independent.",
    ]
    if base is not None and tuned is not None:
        notes.append(f"Gap: from {100 * base.rate.value:.1f} % (base) to {100 * tuned.rate.value:.1f} % (tuned).")
    if world.pairs is not None:
        notes.append(
            f"Of the base's own answers under the good persona, in the pairs, {100 * world.pairs.rate.value:.1f} % "
            "are good."
        )
    if world.baked is not None and world.baked.delivered_share is not None:
        notes.append(f"Lowest delivered share of the baked tensors: {world.baked.delivered_share:.4f}.")
    notes += [f"No edit by {name}: {method.refused}." for name, method in world.methods.items() if method.refused]
    return notes


def _picked_table(world: WorldFigures) -> str:
    columns = (
        "on the second half of the subjects",
        "default: good, %",
        "default: gap closed, %",
        "default: loss",
        "strengths picked, by seed",
        "best of grid: good, %",
        "best of grid: gap closed, %",
        "best of grid: loss",
    )
    rows = []
    for name, method in world.methods.items():
        default, picked = method.default_second_half, method.picked
        if default is None or picked is None:
            continue
        rows.append(
            (
                name,
                _rate(default),
                _text(default.gap, 1),
                _text(default.loss, 4),
                ", ".join(f"{strength:g}" for strength in picked.strengths),
                _rate(picked),
                _text(picked.gap, 1),
                _text(picked.loss, 4),
            )
        )
    return markdown_table(columns, rows)


def _grid_table(world: WorldFigures) -> str:
    """Gap closed and loss at every strength, on the half that strengths are picked on."""
    columns = ("on the first half", "strength: gap closed in % / loss on good documents")
    rows = []
    for name, method in world.methods.items():
        cells = []
        for strength, figures in method.grid:
            gap = "-" if figures.gap is None else f"{figures.gap.mean:.0f}"
            loss = "-" if figures.loss is None else f"{figures.loss.mean:.3f}"
            cells.append(f"{strength:g}: {gap} / {loss}")
        if cells:
            rows.append((name, "; ".join(cells)))
    return markdown_table(columns, rows)


def _seconds_table(world: WorldFigures) -> str:
    rows = []
    if world.pairs is not None:
        rows.append(
            ("pairs (shared by all)", _text(world.pairs.seconds.get("pairs"), 1), "", f"{world.pairs.load:.1f}")
        )
    for name, method in world.methods.items():
        if method.default is not None:
            seconds = method.default.seconds
            rows.append(
                (
                    name,
                    _text(seconds.get("capture"), 1),
                    _text(seconds.get("fit"), 2),
                    f"{method.default.load:.1f}",
                )
            )
    return markdown_table(("seconds", "running the model", "fit", "highest load"), rows)


def _rate(figures: Figures) -> str:
    rate = figures.rate
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _text(spread: Spread | None, digits: int) -> str:
    return "" if spread is None else spread.text(digits)
