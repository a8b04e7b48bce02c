"""The levels of a certificate, from the JSON that a bake writes, as figures with their bounds.

Certificates name alike what belongs together, and that is all that is relied on here, so that those of every exporter
are shown: `residual_error` has its bound in `residual_bound` and what the edit moves in `residual_moved`;
`error_to_hooked_base` has its bound in `bound_to_hooked_base`, and `moved` beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.report.html.report_data import CertificateFigure, CertificateLevel, TensorFigures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PLACE: Final = "certificate.json"
_ERROR_TO: Final = "error_to_"
_ERROR: Final = "_error"
# Keys that say which of several comparisons this is.
_CIRCUMSTANCES: Final = (("batch_size", "batch"), ("cache", "cache"))
# Where the key says too little.
_NAMES: Final = {"last_only_difference": "logits differ, edits at the last position alone"}
_NOT_FIGURES: Final = ("level", "verdict", "reasons")


def certificate_levels(certificate: Mapping[str, Any]) -> tuple[CertificateLevel, ...]:
    """Every level of `alignez/certificate.json`.

    Raises:
        BadInputError: levels that are no certificate's.
    """
    return tuple(_level(name, figures) for name, figures in _levels(certificate).items())


def edited_tensors(certificate: Mapping[str, Any]) -> tuple[TensorFigures, ...]:
    """How much of the edit each edited tensor holds, where the certificate lists them.

    Raises:
        BadInputError: as `certificate_levels`.
    """
    figures = _levels(certificate).get("tensors", {})
    return tuple(
        TensorFigures(
            str(entry.get("name", entry.get("module", ""))),
            *(_number_or_none(entry, key) for key in ("share", "residual", "relative_change")),
        )
        for entry in _objects(figures, "tensors")
    )


def _levels(certificate: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    levels = certificate.get("levels")
    if not isinstance(levels, dict) or not all(isinstance(figures, dict) for figures in levels.values()):
        raise BadInputError(f"{_PLACE}: 'levels' must be an object of objects: the record is damaged, bake again")
    return levels


def _level(name: str, figures: Mapping[str, Any]) -> CertificateLevel:
    verdict, reasons = figures.get("verdict"), figures.get("reasons", [])
    if not isinstance(verdict, str) or not isinstance(reasons, list):
        raise BadInputError(f"{_PLACE}: level {name!r} has no verdict or no reasons: the record is damaged, bake again")
    return CertificateLevel(name, verdict, tuple(str(reason) for reason in reasons), tuple(_figures(figures)))


def _figures(figures: Mapping[str, Any]) -> Iterator[CertificateFigure]:
    if "edited_tensors" in figures:
        yield from _of_tensors(figures)
    else:
        yield from _single(figures)
    for comparison in _objects(figures, "comparisons"):
        yield from _of_comparison(comparison)
    worst = figures.get("worst_site")
    if isinstance(worst, dict):
        bound = _at_most(worst.get("tolerance"))
        yield CertificateFigure(f"worst site, {worst.get('module', '')}", _shown(worst.get("error")), bound)
    yield from _of_greedy(figures)
    for part, prefix in (("model", "beside the model: "), ("quantised", "quantised graph: ")):
        inner = figures.get(part)
        if isinstance(inner, dict):
            for comparison in _objects(inner, "comparisons"):
                yield from _of_comparison(comparison, prefix)
            yield from _of_greedy(inner, prefix)


def _of_tensors(figures: Mapping[str, Any]) -> Iterator[CertificateFigure]:
    yield CertificateFigure("edited tensors that are the formula, rounded once", _shown(figures["edited_tensors"]))
    yield CertificateFigure("other tensors that are the base's", _shown(figures.get("untouched_tensors")))
    if figures.get("inserted_tensors"):
        yield CertificateFigure("inserted parameters that are the edits'", _shown(figures["inserted_tensors"]))
    share, required = figures.get("lowest_delivered_share"), figures.get("required_delivered_share")
    value = "none changed" if share is None else f"{share:.4f}" if isinstance(share, float) else str(share)
    yield CertificateFigure("lowest delivered share", value, "" if required is None else f"at least {required}")


def _single(figures: Mapping[str, Any]) -> Iterator[CertificateFigure]:
    """All single figures; `worst_site_error` and the like find their bound among them."""
    used = {*_NOT_FIGURES, *(f"{key.removesuffix(_ERROR)}_tolerance" for key in figures if key.endswith(_ERROR))}
    for key, value in figures.items():
        if key in used or key.startswith("required_") or isinstance(value, bool):
            continue
        if isinstance(value, str | int | float):
            bound = _at_most(figures.get(f"{key.removesuffix(_ERROR)}_tolerance")) if key.endswith(_ERROR) else ""
            required = figures.get(f"required_{key}")
            bound = bound if required is None else f"at least {_shown(required)}"
            yield CertificateFigure(_NAMES.get(key, key.replace("_", " ")), _shown(value), bound)


def _of_comparison(comparison: Mapping[str, Any], prefix: str = "") -> Iterator[CertificateFigure]:
    where = ", ".join(f"{word} {comparison[key]}" for key, word in _CIRCUMSTANCES if key in comparison)
    ending = f", {where}" if where else ""
    for key, value in comparison.items():
        if key.startswith(_ERROR_TO):
            against = key.removeprefix(_ERROR_TO)
            bound, moved = comparison.get(f"bound_to_{against}"), comparison.get("moved")
            name = f"logits against the {against.replace('_', ' ')}"
        elif key.endswith(_ERROR):
            what = key.removesuffix(_ERROR)
            bound, moved = comparison.get(f"{what}_bound"), comparison.get(f"{what}_moved")
            name = f"{what.replace('_', ' ')} error"
        else:
            continue
        shown_moved = "" if moved is None else _shown(moved)
        yield CertificateFigure(f"{prefix}{name}{ending}", _shown(value), _at_most(bound), shown_moved)


def _of_greedy(figures: Mapping[str, Any], prefix: str = "") -> Iterator[CertificateFigure]:
    greedy = figures.get("greedy")
    if not isinstance(greedy, dict):
        return
    name = f"{prefix}{greedy.get('tokens', '')} greedy tokens equal"
    shares = greedy.get("equal_share")
    for batch, share in shares.items() if isinstance(shares, dict) else ():
        yield CertificateFigure(f"{name}, {batch}", f"{share:.0%} of prompts" if _is_number(share) else str(share))
    for entry in _objects(greedy, "comparisons"):
        where = f"to {entry.get('against', 'the reference')}'s, batch {entry.get('batch_size', '')}"
        yield CertificateFigure(f"{name} {where}", f"{entry.get('equal', '')} of {entry.get('prompts', '')} prompts")


def _objects(figures: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = figures.get(key, [])
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _number_or_none(entry: Mapping[str, Any], key: str) -> float | None:
    value = entry.get(key)
    return float(value) if value is not None and _is_number(value) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at_most(bound: object) -> str:
    return "" if bound is None else f"at most {_shown(bound)}"


def _shown(value: object) -> str:
    """Integers and words as they are, other numbers with two digits."""
    return f"{value:.1e}" if isinstance(value, float) else str(value)
