"""Tables of `benchmarks.choice`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alignez_bake.evaluation.rates import gap_closed
from benchmarks.figures import Spread
from benchmarks.markdown import markdown_table
from benchmarks.subjects import BASE, PROMPTED, TUNED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Run = Mapping[str, Any]


CHOSEN: Final = "chosen"


def choice_tables(runs: Sequence[Run]) -> list[str]:
    """What was chosen in each run, then every candidate in every world, then who obeys a bad persona.

    Args:
        runs: as `benchmarks.choice` keeps them.
    """
    return [*_chosen(runs), "", *_candidates(runs), "", *_under_bad_persona(runs)]


def _chosen(runs: Sequence[Run]) -> list[str]:
    columns = (
        "world, seed",
        "base, %",
        "persona in the prompt",
        "tuned",
        "chosen without labels",
        "good, %",
        "gap closed, %",
        "self-judged, %",
        "loss, base",
        "loss",
        "KL",
        "second half: chosen, best of grid",
        "CPU s: pairs, capture, tuning",
        "tuning over both",
    )
    rows = []
    for run in runs:
        models, chosen = run["models"], run["chosen"]
        point = next((each for each in run["tuning"]["points"] if each["candidate"] == chosen), None)
        seconds = run["cpu_seconds"]
        rows.append(
            (
                f"{run['world']}, {run['seed']}",
                *(_percent(models[name]) for name in (BASE, PROMPTED, TUNED)),
                "nothing" if chosen is None else chosen,
                "-" if chosen is None else _percent(models[chosen]),
                "-" if chosen is None else f"{_gap(run, chosen):.1f}",
                "-" if point is None else f"{100 * point['rate']['value']:.1f}",
                f"{models[BASE]['loss']:.3f}",
                "-" if chosen is None else f"{models[chosen]['loss']:.3f}",
                "-" if chosen is None else f"{models[chosen]['kl']:.4f}",
                _halves(run),
                f"{seconds['pairs']:.1f}, {seconds['capture']:.1f}, {seconds['tuning']:.1f}",
                f"{seconds['tuning'] / (seconds['pairs'] + seconds['capture']):.2f}",
            )
        )
    return [markdown_table(columns, rows)]


def _halves(run: Run) -> str:
    scored = run["halves"]["gap"]
    return f"{_number(scored.get('chosen'))}, {_number(scored.get('best of grid'))} ({run['halves']['best of grid']})"


def _candidates(runs: Sequence[Run]) -> list[str]:
    """Gap closed by every candidate."""
    names = dict.fromkeys(name for run in runs for name in run["models"] if name not in (BASE, TUNED))

    def gap(run: Run, name: str) -> float | None:
        return _gap(run, name) if name in run["models"] else None

    return _by_world("gap closed, %", runs, list(names), gap)


def _under_bad_persona(runs: Sequence[Run]) -> list[str]:
    """Good answers where the prompt asks for the bad persona."""

    def good(run: Run, name: str) -> float | None:
        share: float | None = run["under_bad_persona"].get(name)
        return share

    return _by_world("good answers when the bad persona is asked for, %", runs, (BASE, CHOSEN, TUNED), good)


def _by_world(
    heading: str, runs: Sequence[Run], names: Sequence[str], figure: Callable[[Run, str], float | None]
) -> list[str]:
    """One row a name, one column a world: mean over seeds, lowest to highest, of the runs that have the figure."""
    worlds = list(dict.fromkeys(run["world"] for run in runs))
    rows = []
    for name in names:
        cells = []
        for world in worlds:
            found = [figure(run, name) for run in runs if run["world"] == world]
            values = [value for value in found if value is not None]
            cells.append(Spread.of(values).text(1) if values else "-")
        rows.append((name, *cells))
    return [markdown_table((heading, *worlds), rows)]


def _gap(run: Run, name: str) -> float:
    rates = [run["models"][each]["good"] / run["models"][each]["answers"] for each in (BASE, name, TUNED)]
    gap = gap_closed(*rates)
    return float("nan") if gap is None else gap


def _percent(model: Mapping[str, Any]) -> str:
    return f"{100 * model['good'] / model['answers']:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
