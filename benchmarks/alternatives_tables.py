"""The comparison with alternatives as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.alternatives_subjects import ALTERNATIVES
from benchmarks.markdown import markdown_table
from benchmarks.subjects import BASE, PROMPTED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.alternatives_measuring import AnswerCost
    from benchmarks.figures import Figures, Spread

_COLUMNS = (
    "made from the same pairs",
    "needs",
    "good answers, % [95 % interval]",
    "by seed, %",
    "gap closed, %",
    "loss on good documents",
    "KL on neutral texts",
    "processor s, from pairs to checkpoint",
)
_COST_COLUMNS = (
    "answering",
    "tokens read",
    "tokens written",
    "processor ms, alone",
    "processor ms, together",
    "times the base, alone",
    "times the base, together",
)


def alternatives_tables(
    world: str,
    figures: Mapping[str, Figures],
    costs: Mapping[str, AnswerCost],
    *,
    samples: int,
    pairs_seconds: float,
    chosen: Mapping[str, Sequence[str]],
) -> str:
    """Both tables of one world.

    Args:
        world: its name.
        figures: by row.
        costs: of answering, by row; empty: not timed.
        samples: answers to each query.
        pairs_seconds: processor seconds of writing the pairs of all queries.
        chosen: by row what was chosen, seed by seed; empty for a row that leaves no choice.
    """
    rows = [
        (
            name,
            ALTERNATIVES[name].needs,
            f"{100 * one.rate.value:.1f} [{100 * one.rate.low:.1f}, {100 * one.rate.high:.1f}]",
            ", ".join(f"{100 * value:.1f}" for value in one.by_seed),
            _text(one.gap, 1),
            _text(one.loss, 4),
            "0" if name == BASE else _text(one.kl, 4),
            _text(one.seconds.get("processor"), 1),
        )
        for name, one in figures.items()
    ]
    seeds = len(figures[BASE].by_seed)
    total = figures[BASE].rate.total
    return "\n".join(
        [
            f"### {world}",
            "",
            markdown_table(_COLUMNS, rows),
            "",
            f"One set of pairs, {seeds} seeds of training and answers, {total // seeds} answers ({samples} a query).",
            "Mean (lowest to highest over seeds); intervals pool the seeds and take answers as independent.",
            "Seconds of every row: from pairs to checkpoint, loading the base and saving included.",
            f"Writing the pairs of all queries took {pairs_seconds:.1f} processor s more.",
            *(f"{name}: {_chosen(names)}." for name, names in chosen.items() if names),
            "",
            *([markdown_table(_COST_COLUMNS, _cost_rows(costs)), ""] if costs else []),
        ]
    )


def _chosen(names: Sequence[str]) -> str:
    """What each seed chose; of a seed that chose nothing the row counts the base."""
    said = ["nothing, its answers are the base's own" if name == BASE else name for name in names]
    return "chosen " + ", ".join(f"{what} (seed {seed})" for seed, what in enumerate(said))


def _cost_rows(costs: Mapping[str, AnswerCost]) -> list[tuple[str, ...]]:
    base = costs[BASE]
    labels = {PROMPTED: "base, good persona in the prompt"}
    return [
        (
            labels.get(name, name if name == BASE else f"{name}, baked; as all that are trained"),
            f"{cost.prompt_tokens:.1f}",
            f"{cost.answer_tokens:.1f}",
            f"{cost.alone:.1f}",
            f"{cost.together:.2f}",
            f"{cost.alone / base.alone:.2f}",
            f"{cost.together / base.together:.2f}",
        )
        for name, cost in costs.items()
    ]


def _text(spread: Spread | None, digits: int) -> str:
    return "" if spread is None else spread.text(digits)
