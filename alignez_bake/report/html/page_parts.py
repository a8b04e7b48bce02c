"""`alignez/report.json`: what the page shows that stands in no other record, so that it can be made again.

That is its title, the answers before and after, and the coordinates of activations on two axes. The activations
themselves are not kept: they are as wide as the model, and say more of the texts than a picture does.

The file of somebody else's result may hold anything: what is read has a bounded size, text where text belongs, and
numbers that can be drawn.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.report.html.report_data import LARGEST_DRAWN, PointCloud, Projection, Sample
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

REPORT_FILE: Final = "report.html"
PARTS_FILE: Final = "report.json"
FORMAT: Final = 1
_MAX_BYTES: Final = 16 * 1024 * 1024
_MAX_PROJECTIONS: Final = 64
_DIGITS: Final = 4


@dataclass(frozen=True)
class PageParts:
    """What the page shows beside the records.

    Attributes:
        title: heading of the page: the name that the result was baked with.
        samples: answers before and after.
        projections: good and bad activations.
        notes: what must stand beside them, one sentence or more each.
    """

    title: str
    samples: tuple[Sample, ...] = ()
    projections: tuple[Projection, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The parts as JSON values, coordinates with four digits; `from_json` reads them back."""
        return {
            "format": FORMAT,
            "title": self.title,
            "samples": [asdict(sample) for sample in self.samples],
            "projections": [_projection_json(projection) for projection in self.projections],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], place: str) -> PageParts:
        """Read what `to_json` gave.

        Args:
            value: the object.
            place: what it is, for messages.

        Raises:
            BadInputError: another format, a key that is missing or of another type, too many projections, or
                coordinates that cannot be drawn.
        """
        if value.get("format") != FORMAT:
            raise BadInputError(f"{place} has format {shown(value.get('format'))}: this version reads {FORMAT}")
        try:
            return cls(
                _text(value["title"]),
                tuple(
                    Sample(_text(entry["query"]), _text(entry["before"]), _text(entry["after"]))
                    for entry in _list(value["samples"])
                ),
                tuple(_projection(entry) for entry in _list(value["projections"], at_most=_MAX_PROJECTIONS)),
                tuple(_text(note) for note in _list(value["notes"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"{place} is damaged: {type(error).__name__}: {error}") from error


def written_page(result: Path) -> Path | None:
    """Where the page of a result lies; None where it has none."""
    path = result / OURS / REPORT_FILE
    return path if path.is_file() else None


def write_parts(folder: Path, parts: PageParts) -> None:
    """Write `alignez/report.json` of a result that is being written; the same parts give the same bytes."""
    text = json.dumps(parts.to_json(), ensure_ascii=False, allow_nan=False)
    (folder / OURS / PARTS_FILE).write_text(text + "\n", encoding="utf-8")


def read_parts(result: Path) -> PageParts | None:
    """`alignez/report.json` of a result; None where it has none.

    Raises:
        BadInputError: a file that is too large, or as `PageParts.from_json`.
    """
    path = result / OURS / PARTS_FILE
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_BYTES:
        raise BadInputError(f"{path} has {path.stat().st_size} bytes: at most {_MAX_BYTES} are read")
    return PageParts.from_json(parse_object(path.read_bytes(), str(path)), str(path))


def _projection_json(projection: Projection) -> dict[str, Any]:
    return {
        "site": projection.site,
        "before": _cloud_json(projection.before),
        "after": None if projection.after is None else _cloud_json(projection.after),
        "same_axes": projection.same_axes,
    }


def _cloud_json(cloud: PointCloud) -> dict[str, Any]:
    return {
        "good": [_rounded(point) for point in cloud.good.tolist()],
        "bad": [_rounded(point) for point in cloud.bad.tolist()],
        "explained": _rounded(cloud.explained),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]


def _projection(entry: Any) -> Projection:  # noqa: ANN401 - JSON of any kind
    return Projection(
        _text(entry["site"]),
        _cloud(entry["before"]),
        None if entry["after"] is None else _cloud(entry["after"]),
        entry["same_axes"] is True,
    )


def _cloud(entry: Any) -> PointCloud:  # noqa: ANN401 - JSON of any kind
    first, second = (_number(share) for share in _list(entry["explained"]))
    good, bad = (np.array([_point(point) for point in _list(entry[side])]).reshape(-1, 2) for side in ("good", "bad"))
    if not len(good) or not len(bad):
        raise ValueError("a projection without points of both sides")
    return PointCloud(good, bad, (first, second))


def _point(value: object) -> tuple[float, float]:
    first, second = (_number(coordinate) for coordinate in _list(value))
    return first, second


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST_DRAWN:
        raise TypeError(f"{shown(value)} is no number that can be drawn")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is no text")
    return value


def _list(value: object, *, at_most: int | None = None) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{shown(value)} is no list")
    if at_most is not None and len(value) > at_most:
        raise ValueError(f"a list of {len(value)}, where at most {at_most} can be shown")
    return value
