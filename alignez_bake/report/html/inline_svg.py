"""A matplotlib figure as SVG that lies in the page itself, and follows its light or dark colours.

matplotlib draws in fixed colours. Here each role a colour can have is one placeholder, and what is written says
`var(--role)` instead, which the page's style sheet defines once for light and once for dark. Text stays text, in the
page's own font.

Everything that would differ from run to run or clash within a page is taken out: dates, ids that nothing refers to, and
styles that would apply to the whole page. Ids that are left begin with the figure's name.
"""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from matplotlib.axes import Axes

_ROLES: Final = ("ink", "muted", "line", "accent", "good", "bad", "third", "fourth")
# No colour of matplotlib's own, so that one that was forgotten does not pass for one of these.
COLOUR: Final = {role: f"#0100{number:02x}" for number, role in enumerate(_ROLES, start=1)}
"""Placeholder of each role."""
_VARIABLE: Final = {colour: f"var(--{role})" for role, colour in COLOUR.items()}
_HEX: Final = re.compile("#[0-9a-f]{6}")
_REFERENCE: Final = re.compile(r"url\(#([^)]*)\)|^#(.+)$")
# With 72 dots an inch, a point is a unit of the picture, which a page of full width shows as about one pixel.
_UNITS: Final = 72
_SETTINGS: Final[dict[str, Any]] = {
    "svg.hashsalt": "alignez-bake",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": COLOUR["ink"],
    "font.size": 10.5,
    "axes.edgecolor": COLOUR["line"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": COLOUR["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOUR["line"],
    "xtick.labelcolor": COLOUR["muted"],
    "ytick.color": COLOUR["line"],
    "ytick.labelcolor": COLOUR["muted"],
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


@contextmanager
def own_settings() -> Iterator[None]:
    """matplotlib's defaults and the page's settings, whatever the user's matplotlibrc says; the user's come back."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def empty_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure without background, and its axes; within `own_settings`.

    Args:
        width: in units of the picture.
        height: likewise.
    """
    figure = Figure(figsize=(width / _UNITS, height / _UNITS), dpi=_UNITS, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    return figure, axes


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """An `<svg>` element for HTML; within `own_settings`.

    Args:
        figure: drawn in the placeholders of `COLOUR` alone.
        name: of the figure, unlike all others of the page; letters, digits and hyphens.
        title: for those who do not see it.
        description: what it shows, in a sentence or more.

    Raises:
        ValueError: a colour that is no placeholder.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    root = ET.fromstring(written.getvalue())  # noqa: S314 - matplotlib wrote it just now
    _without_namespaces(root)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in {"metadata", "style"}]:
            parent.remove(child)
    referred = {_referred(value) for element in root.iter() for value in element.attrib.values()} - {None}
    for element in root.iter():
        _rewrite(element, name, referred)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        label = ET.Element(tag, {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        label.text = text
        root.insert(place, label)
    return ET.tostring(root, encoding="unicode")


def _without_namespaces(root: ET.Element) -> None:
    """HTML knows SVG by the element's name; a prefix would make an unknown element of it."""
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _referred(value: str) -> str | None:
    match = _REFERENCE.search(value)
    return None if match is None else match[1] or match[2]


def _rewrite(element: ET.Element, name: str, referred: set[str | None]) -> None:
    """Prefix ids, turn colours into variables, and drop what the page's style sheet says."""
    if element.attrib.get("id") not in referred:
        element.attrib.pop("id", None)
    for key, value in element.attrib.items():
        if key == "id":
            element.attrib[key] = f"{name}-{value}"
        elif key == "style":
            declarations = [part.strip() for part in value.split(";")]
            kept = [part for part in declarations if part and not part.startswith("font-family")]
            element.attrib[key] = _HEX.sub(_variable, "; ".join(kept))
        elif _referred(value) is not None:
            element.attrib[key] = value.replace("#", f"#{name}-")
    if element.tag != "text":
        element.text = (element.text or "").strip() or None
    element.tail = None


def _variable(match: re.Match[str]) -> str:
    colour = match[0]
    if colour not in _VARIABLE:
        raise ValueError(f"colour {colour} has no role: a figure is drawn in the placeholders of COLOUR alone")
    return _VARIABLE[colour]
