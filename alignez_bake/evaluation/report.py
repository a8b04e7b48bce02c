"""An evaluation as rows of tables, as Markdown, and as a folder of files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.evaluation.answers_file import judgement_json
from alignez_bake.evaluation.plot import can_plot, plot
from alignez_bake.evaluation.protocol import pair_name
from alignez_bake.report.markdown import code, escaped, table
from alignez_bake.report.record import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from alignez_bake.evaluation.answers_file import ModelAnswers
    from alignez_bake.evaluation.bootstrap import Gap
    from alignez_bake.evaluation.figures import Figures
    from alignez_bake.evaluation.protocol import AnswerSet, Judgement
    from alignez_bake.evaluation.query_draws import Estimate

JSON_FILE: Final = "eval.json"
MARKDOWN_FILE: Final = "eval.md"
PLOT_FILE: Final = "eval.svg"
ANSWERS_FILE: Final = "answers.jsonl"

MODEL_COLUMNS: Final = ("model", "good answers", "mean score", "perplexity", "KL from the base")
PAIR_COLUMNS: Final = ("pair", "win", "tie", "lose", "unjudged", "net win")


def model_rows(figures: Figures, drift: Mapping[str, ModelAnswers]) -> list[tuple[str, ...]]:
    """One row for each model, of `MODEL_COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for name, answers in drift.items():
        entry = figures.models.get(name)
        rows.append(
            (
                name,
                "-" if entry is None else _interval(entry.good_rate.times(100), "%", 1),
                "-" if entry is None else _interval(entry.mean_score, "", 3),
                "-" if answers.perplexity is None else f"{answers.perplexity:.4g}",
                "-" if answers.kl is None else f"{answers.kl:.3g} nats a token",
            )
        )
    return rows


def pair_rows(figures: Figures) -> list[tuple[str, ...]]:
    """One row for each pair, of `PAIR_COLUMNS`."""
    return [
        (
            pair_name(pair),
            *(str(count) for count in (entry.wins, entry.ties, entry.losses, entry.unjudged)),
            "-" if entry.net_win is None else _interval(entry.net_win, "%", 1),
        )
        for pair, entry in figures.pairs.items()
    ]


def gap_line(gap: Gap, gap_of: str) -> str:
    """How much of the gap is closed, as a sentence."""
    of = "good answers" if gap_of == "good_rate" else "net wins over the base"
    if gap.value is None:
        return f"Gap closed ({of}): undefined, {gap.reason}."
    return f"Gap closed ({of}): {gap.value:.1f} % (95 % interval {gap.low:.1f} to {gap.high:.1f})."


def judge_lines(figures: Figures, settings: Mapping[str, Any]) -> list[str]:
    """What judged, and what of it could not be used."""
    named = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None and "sha256" not in key)
    lines = [f"Judge: {named}."]
    if settings["kind"] == "server":
        lines.append(
            f"Comparisons that hang on the order of the answers, which count as ties: {figures.order_dependent}. "
            f"Replies that were no letter: {len(figures.unreadable)}."
        )
    return lines


def markdown(
    figures: Figures,
    drift: Mapping[str, ModelAnswers],
    report: Mapping[str, Any],
    *,
    judge: Mapping[str, Any],
    notes: Sequence[str],
    plotted: bool,
) -> str:
    """The whole report.

    Args:
        figures: what was found.
        drift: by model its perplexity and KL.
        report: the same as `eval.json`, for paths and settings.
        judge: settings of the judge.
        notes: what a reader should know, one line each.
        plotted: whether the picture lies beside it.
    """
    parts = ["# Evaluation", table(MODEL_COLUMNS, model_rows(figures, drift))]
    if figures.gap is not None:
        parts.append(f"**{escaped(gap_line(figures.gap, figures.gap_of))}**")
    parts.append(table(PAIR_COLUMNS, pair_rows(figures)))
    if plotted:
        parts.append(f"![Rates and outcomes]({PLOT_FILE})")
    parts.append("\n".join(f"- {escaped(line)}" for line in [*judge_lines(figures, judge), *notes]))
    parts.append("## What was compared")
    named = {**report["paths"], **report["settings"]}
    parts.append("\n".join(f"- {escaped(name)}: {code(_shown(value))}" for name, value in named.items()))
    return "\n\n".join(parts) + "\n"


def write_report(
    folder: Path,
    figures: Figures,
    drift: Mapping[str, ModelAnswers],
    report: Mapping[str, Any],
    *,
    judged: Sequence[tuple[AnswerSet, Judgement]],
    notes: Sequence[str],
) -> None:
    """Write `eval.json`, `eval.md`, `answers.jsonl` and, with matplotlib, `eval.svg` into a folder.

    Args:
        folder: exists.
        figures: what was found.
        drift: by model its perplexity and KL.
        report: what becomes `eval.json`.
        judged: all answers with what was said of them.
        notes: what a reader should know.
    """
    write_json(folder / JSON_FILE, report)
    plotted = can_plot()
    if plotted:
        plot(figures, folder / PLOT_FILE)
    text = markdown(figures, drift, report, judge=report["judge"], notes=notes, plotted=plotted)
    (folder / MARKDOWN_FILE).write_text(text, encoding="utf-8")
    lines = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in _entries(judged))
    (folder / ANSWERS_FILE).write_text("".join(lines), encoding="utf-8")


def _entries(judged: Sequence[tuple[AnswerSet, Judgement]]) -> Iterator[dict[str, Any]]:
    for (query, answers), judgement in judged:
        yield {"query": query, "answers": dict(answers), **judgement_json(judgement)}


def _interval(estimate: Estimate, unit: str, digits: int) -> str:
    space = f" {unit}" if unit else ""
    return f"{estimate.value:.{digits}f}{space} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
