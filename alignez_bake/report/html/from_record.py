"""A report of what a bake records anyway: `alignez.json`, `certificate.json` and `edits.safetensors`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.report.html.certificate_levels import certificate_levels, edited_tensors
from alignez_bake.report.html.plan_sites import site_figures
from alignez_bake.report.html.report_data import ReportData, RoutedEdit, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from alignez_bake.edit_plan import EditPlan

_PLACE: Final = "alignez.json"
_OWN_JUDGEMENT: Final = (
    "The base wrote and judged its own preferences, without labels: where its behaviour under a persona is not what "
    "you want, neither is this one's."
)
# What the page shows elsewhere, or what is too long to be a setting.
_NOT_SETTINGS: Final = ("sites", "notes", "refits", "tool", "method", "settings", "seed", "tuning")


def report_data_from_record(
    record: Mapping[str, Any],
    certificate: Mapping[str, Any] | None,
    *,
    title: str,
    plan: EditPlan | None = None,
    base: str | None = None,
    samples: Sequence[tuple[str, str, str]] = (),
    commands: Sequence[str] = (),
) -> ReportData:
    """Everything that a bake writes down, as a report; rates, frontier and projections are for others to add.

    Args:
        record: `alignez/alignez.json` of a result.
        certificate: `alignez/certificate.json`; None where nothing was checked.
        title: heading of the page, such as the result's name.
        plan: the edits that were baked, for strengths and singular values.
        base: name of the base; what the record says unless given.
        samples: query, the base's answer and the result's.
        commands: lines of a shell that make the result again.

    Raises:
        BadInputError: a record or certificate whose parts are not what this tool writes.
    """
    provenance = _part(record, "provenance", dict)
    notes = provenance.get("notes", [])
    verdict = None if certificate is None else certificate.get("verdict")
    if verdict is not None and not isinstance(verdict, str):
        raise BadInputError(f"certificate.json: verdict {verdict!r} is no text: the record is damaged, bake again")
    return ReportData(
        title=title,
        tool=_part(record, "tool", str),
        base=base if base is not None else _recorded_base(record),
        artefact=_part(record, "artefact", str) or None,
        verdict=verdict,
        levels=() if certificate is None else certificate_levels(certificate),
        samples=tuple(Sample(*sample) for sample in samples),
        sites=() if plan is None else site_figures(plan),
        routes=tuple(_routed(entry) for entry in _part(record, "decisions", list)),
        tensors=() if certificate is None else edited_tensors(certificate),
        settings=tuple(_settings(record)),
        commands=tuple(commands),
        notes=(
            *([_OWN_JUDGEMENT] if "method" in provenance and "pairs" in provenance else []),
            *(str(note) for note in (notes if isinstance(notes, list) else [])),
            *_refit_notes(certificate or {}),
            *_left_out_notes(record),
        ),
    )


def _part(record: Mapping[str, Any], key: str, kind: type[Any]) -> Any:  # noqa: ANN401 - of that kind
    """What the record has under a key; an empty one where it has none."""
    value = record.get(key, kind())
    if not isinstance(value, kind):
        raise BadInputError(f"{_PLACE}: {key!r} must be a JSON {kind.__name__}: the record is damaged, bake again")
    return value


def _recorded_base(record: Mapping[str, Any]) -> str | None:
    """The base's name on the hub with its commit, or the name of its folder; its kind where neither is known."""
    base = record.get("base") or record.get("base_graph")
    if not isinstance(base, dict):
        return None
    repo, commit, path, kind = (base.get(key) for key in ("repo", "commit", "path", "model_type"))
    if isinstance(repo, str):
        return f"{repo}@{commit}" if isinstance(commit, str) else repo
    if isinstance(path, str):
        return path.replace("\\", "/").rstrip("/").rpartition("/")[2] or path
    return kind if isinstance(kind, str) else None


def _routed(entry: object) -> RoutedEdit:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("site", "route", "reason")):
        raise BadInputError(f"{_PLACE}: a decision lacks site, route or reason: the record is damaged, bake again")
    objective, rank = entry.get("objective"), entry.get("rank")
    return RoutedEdit(
        entry["site"],
        entry["route"],
        entry["reason"],
        str(entry.get("exactness", "")),
        str(entry.get("cost", "")),
        objective if isinstance(objective, str) else None,
        rank if isinstance(rank, int) else None,
    )


def _settings(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    provenance = _part(record, "provenance", dict)
    for name in ("method", "seed"):
        if name in provenance:
            yield name, _text(provenance[name])
    settings = provenance.get("settings")
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if value is not None:
            yield f"{name} (fit)", _text(value)
    for name, value in provenance.items():
        if name not in _NOT_SETTINGS:
            yield name.replace("_", " "), _text(value)
    for name, weight in _part(record, "weights", dict).items():
        yield f"weight of {name}", _text(weight)
    yield "artefact", _text(record.get("artefact"))
    yield "dtype", "the base's" if record.get("dtype") is None else _text(record["dtype"])
    for name, value in _part(record, "options", dict).items():
        yield name.replace("_", " "), _text(value)
    base = record.get("base")
    for name in ("model_type", "config_sha256", "tensors_sha256", "repo", "commit"):
        if isinstance(base, dict) and name in base:
            yield f"base: {name.replace('_', ' ')}", _text(base[name])
    yield "made by", _part(record, "tool", str)
    yield "rows computed by", _part(record, "row_backend", str) or "numpy"  # older versions knew nothing else
    versions = _part(record, "versions", dict)
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _text(value: object) -> str:
    """A JSON value for people: text as it is, objects as `name: value`."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(inner)}" for name, inner in value.items())
    return json.dumps(value, ensure_ascii=False)


def _refit_notes(certificate: Mapping[str, Any]) -> Iterator[str]:
    refit = certificate.get("refit")
    if not isinstance(refit, dict):
        return
    kept, whole = refit.get("kl_original_to_refitted"), refit.get("kl_original_to_base")
    yield (
        f"Edits were changed to fold ({_text(refit.get('kind'))}): KL from the original edits {_text(kept)} nats a "
        f"token, of the original edits from the base {_text(whole)}."
    )
    reasons = refit.get("reasons")
    yield from (str(reason) for reason in (reasons if isinstance(reasons, list) else []))


def _left_out_notes(record: Mapping[str, Any]) -> Iterator[str]:
    files = [entry for entry in _part(record, "files_left_out", list) if isinstance(entry, dict)]
    if files:
        listed = "; ".join(f"{_text(entry.get('name'))} ({_text(entry.get('reason'))})" for entry in files)
        yield f"Files of the base that are not in the result: {listed}."
