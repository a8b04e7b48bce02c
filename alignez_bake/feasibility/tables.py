"""What was found as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.report.tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from alignez_bake.evaluation.rates import Rate
    from alignez_bake.feasibility.assess import Feasibility
    from alignez_bake.feasibility.obedience import UpperBound
    from alignez_bake.tuning.uncertainty import ClusteredMean


def feasibility_tables(found: Mapping[str, Feasibility]) -> list[Table | str]:
    """Of each objective its figures, its layers, and last what follows from them."""
    tables: list[Table | str] = []
    for name, feasibility in found.items():
        tables.append(_figures(name, feasibility))
        if feasibility.layers:
            tables.append(_layers(name, feasibility))
        tables += _sentences(name, feasibility)
    return tables


def feasibility_note(found: Mapping[str, Feasibility]) -> list[str]:
    """One sentence an objective, and the advice where help is not likely: what a run shows beside its result."""
    notes = []
    for name, feasibility in found.items():
        prediction = feasibility.prediction
        notes.append(f"Feasibility of {name}, from {feasibility.obedience.queries} pairs: {prediction.sentence}.")
        if prediction.verdict != "likely":
            notes += [f"Note: {advice}." for advice in prediction.advice]
    return notes


def _figures(name: str, feasibility: Feasibility) -> Table:
    obedience, pairs, wanted = feasibility.obedience, feasibility.pairs, feasibility.wanted
    other = "bad" if wanted == "good" else "good"
    filters = pairs.filters
    rows: list[tuple[str, str, str]] = [
        (f"answers under the {wanted} persona judged its own", *_rate(obedience.wanted)),
        (f"answers under the {other} persona judged its own", *_rate(obedience.other)),
        (f"answers without persona judged the {wanted} one's", *_rate(obedience.plain)),
        (f"room: under the {wanted} persona less without", *_estimate(obedience.room)),
        ("gain to expect of contrastive decoding", *_estimate(obedience.gain)),
        ("contrast of the personas", *_estimate(obedience.contrast)),
        *([] if obedience.reach is None else [("reach of the persona, for any judge", *_bound(obedience.reach))]),
        ("next token under both: JSD, nats", f"{obedience.divergence:.3g}", ""),
        ("next token under both: total variation", f"{obedience.variation:.3g}", ""),
        ("pairs kept", f"{filters.kept} ({100 * pairs.shares['kept']:.0f} %)", ""),
        (
            "pairs dropped: empty, equal; answers alone",
            f"{filters.empty}, {filters.equal}; {filters.without_partner}",
            "",
        ),
        ("distinct answers: good, bad", ", ".join(f"{100 * share:.0f} %" for share in pairs.distinct.values()), ""),
        ("median tokens: good, bad", ", ".join(f"{length:g}" for length in pairs.lengths), ""),
        (f"pairs whose good answer is likelier under good, of {pairs.judged}", *_rate(pairs.told_apart)),
        ("contrast of the pairs", *_estimate(pairs.contrast)),
        ("reward margin within pairs, median, nats", f"{pairs.margin:.3g}", ""),
    ]
    return table(f"Feasibility: {name}", ("figure", "value", "95 % interval"), rows)


def _layers(name: str, feasibility: Feasibility) -> Table:
    rows = []
    for report in feasibility.layers:
        row: list[object] = [report.layer]
        for found in report.figures.values():
            held_out = found.separability.held_out
            row += [
                f"{held_out.successes} of {held_out.total}",
                f"{found.separability.p_value:.2g}",
                found.cosine,
                found.difference,
            ]
        rows.append(tuple(row))
    columns = [f"{tokens}: {figure}" for tokens in ("last", "mean") for figure in ("told apart", "p", "cosine", "‖Δ‖")]
    return table(f"Layers: {name}, held-out pairs told apart", ("layer", *columns), rows)


def _sentences(name: str, feasibility: Feasibility) -> list[str]:
    prediction = feasibility.prediction
    return [
        f"Prediction for {name}: {prediction.sentence}.",
        *(f"  because {reason}." for reason in prediction.reasons),
        *(f"  Advice: {advice}." for advice in prediction.advice),
    ]


def _rate(rate: Rate) -> tuple[str, str]:
    return f"{100 * rate.value:.0f} %", f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"


def _estimate(estimate: ClusteredMean) -> tuple[str, str]:
    return f"{100 * estimate.value:+.0f} points", f"{100 * estimate.low:+.0f} to {100 * estimate.high:+.0f}"


def _bound(bound: UpperBound) -> tuple[str, str]:
    return f"{100 * bound.value:.0f} points", f"at most {100 * bound.high:.0f}"
