"""What a report shows, as plain values. All but title and tool is optional: what is not there is not shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LARGEST_DRAWN: Final = 1e60
"""Beyond what any figure in use reaches, and far from where differences and their squares overflow."""
# Digits of a layer that is drawn.
_LONGEST_LAYER: Final = 6

RatedModel = Literal["base", "aligned", "tuned"]


def can_be_drawn(value: float | None) -> TypeGuard[float]:
    """Whether a figure has room for a value: somebody else's record may hold any."""
    return value is not None and math.isfinite(value) and abs(value) <= LARGEST_DRAWN


@dataclass(frozen=True)
class CertificateFigure:
    """One figure of a certificate, as text.

    Attributes:
        name: what was measured.
        value: what was found.
        bound: what it must be, such as `at most 1e-05`; empty where nothing must hold.
        moved: how far the edit itself moves the same figure; empty where that says nothing.
    """

    name: str
    value: str
    bound: str = ""
    moved: str = ""


@dataclass(frozen=True)
class CertificateLevel:
    """One level of a certificate.

    Attributes:
        level: `tensors` or `forward`.
        verdict: `passed`, `failed` or `inconclusive`.
        reasons: one line each for what went wrong.
        figures: what was measured.
    """

    level: str
    verdict: str
    reasons: tuple[str, ...] = ()
    figures: tuple[CertificateFigure, ...] = ()


@dataclass(frozen=True)
class MeasuredRate:
    """Share of good answers of one model.

    Attributes:
        model: whose answers.
        judge: who called them good, such as `rules.py` or `the base itself`; rates of one judge are compared.
        value: the share, in [0, 1].
        low: lower end of its 95 % interval.
        high: its upper end.
        total: number of answers; None where that is not known.
    """

    model: RatedModel
    judge: str
    value: float
    low: float
    high: float
    total: int | None = None


@dataclass(frozen=True)
class Drift:
    """What the edits do to text that they should leave alone.

    Attributes:
        kl: mean KL(base || aligned) of the next token, in nats a token.
        budget: most that was allowed; None without one.
        measured_on: which texts.
    """

    kl: float
    budget: float | None = None
    measured_on: str = ""


@dataclass(frozen=True)
class Sample:
    """A query with the base's answer and the result's."""

    query: str
    before: str
    after: str


@dataclass(frozen=True)
class SearchPoint:
    """One candidate of the search.

    Attributes:
        name: its settings, in words.
        rate: its self-judged rate, in [0, 1]; None where it has none.
        standard_error: of the rate; None where it is not known.
        kl: its KL from the base, in nats a token; None where it has none.
        chosen: whether it is the result.
        on_front: whether no other has both a higher rate and a smaller KL.
        out: why it was left behind, a sentence; empty otherwise.
    """

    name: str
    rate: float | None
    standard_error: float | None
    kl: float | None
    chosen: bool = False
    on_front: bool = False
    out: str = ""


@dataclass(frozen=True)
class SiteFigures:
    """The edits of one objective at one site.

    Attributes:
        site: such as `attn_write.3`.
        objective: theirs, if they have one.
        strength: what multiplies them, the objective's dial included; None where it is not one number.
        rank: sum of their ranks.
        spectra: several figures a site by name, such as `singular values` of strength · L Rᵀ, largest first.
        explained: share of what was to be predicted that the fit explains.
        edit_norm: ‖strength · L Rᵀ‖ (Frobenius); None where there are several edits.
        relative_change: ‖W' - W‖ / ‖W‖ of the edited weight.
        others: further figures of the method, by name.
        skipped: why the site has no edit; empty if it has.
    """

    site: str
    objective: str | None = None
    strength: float | None = None
    rank: int | None = None
    spectra: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    explained: float | None = None
    edit_norm: float | None = None
    relative_change: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    skipped: str = ""

    @property
    def kind(self) -> str:
        """The site without its layer."""
        return _kind(self.site)

    @property
    def layer(self) -> int | None:
        """The layer, counted from 0; None for a site that has none."""
        return _layer(self.site)


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Activations in two dimensions.

    Attributes:
        good: float [n, 2].
        bad: float [m, 2].
        explained: share of the activations' variance that each of the two axes holds.
    """

    good: NDArray[np.floating[Any]]
    bad: NDArray[np.floating[Any]]
    explained: tuple[float, float]

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: an array that is not [n, 2].
        """
        for name, points in (("good", self.good), ("bad", self.bad)):
            if np.ndim(points) != 2 or np.shape(points)[1] != 2:
                raise ValueError(f"{name} has shape {np.shape(points)}: coordinates are [n, 2]")


@dataclass(frozen=True)
class Projection:
    """Good and bad activations at one site.

    Attributes:
        site: where they were recorded.
        before: of the base.
        after: of the result, if they were recorded there too.
        same_axes: whether both are coordinates on the same two axes, so that they can be compared.
    """

    site: str
    before: PointCloud
    after: PointCloud | None = None
    same_axes: bool = True


@dataclass(frozen=True)
class RoutedEdit:
    """What became of an edit; see `lowering.decide.Decision`."""

    site: str
    route: str
    reason: str
    exactness: str = ""
    cost: str = ""
    objective: str | None = None
    rank: int | None = None

    @property
    def kind(self) -> str:
        """The site without its layer."""
        return _kind(self.site)

    @property
    def layer(self) -> int | None:
        """The layer, counted from 0; None for a site that has none."""
        return _layer(self.site)


@dataclass(frozen=True)
class TensorFigures:
    """How much of an edit a stored tensor holds; see `lowering.delivery`.

    Attributes:
        name: of the tensor.
        share: delivered share; None where nothing changed.
        residual: ‖W'_stored - W'‖ / ‖ΔW‖.
        relative_change: ‖ΔW‖ / ‖W‖.
    """

    name: str
    share: float | None
    residual: float | None = None
    relative_change: float | None = None


@dataclass(frozen=True)
class ReportData:
    """All that a page shows.

    Attributes:
        title: heading of the page.
        tool: name and version of this tool.
        base: the base model, as its user knows it.
        artefact: kind of the result, such as `checkpoint`.
        verdict: of the certificate; None where nothing was checked.
        levels: the certificate.
        rates: measured shares of good answers.
        drift: what the edits cost.
        samples: answers before and after.
        frontier: candidates of the search.
        sites: what was fitted, site by site.
        projections: good and bad activations.
        routes: what became of each edit, in order.
        tensors: the edited tensors.
        settings: name and value of everything that the result depends on.
        commands: lines of a shell that make the result again.
        notes: what must stand beside the result, one sentence or more each.
    """

    title: str
    tool: str
    base: str | None = None
    artefact: str | None = None
    verdict: str | None = None
    levels: tuple[CertificateLevel, ...] = ()
    rates: tuple[MeasuredRate, ...] = ()
    drift: Drift | None = None
    samples: tuple[Sample, ...] = ()
    frontier: tuple[SearchPoint, ...] = ()
    sites: tuple[SiteFigures, ...] = ()
    projections: tuple[Projection, ...] = ()
    routes: tuple[RoutedEdit, ...] = ()
    tensors: tuple[TensorFigures, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _kind(site: str) -> str:
    return site if _layer(site) is None else site.rpartition(".")[0]


def _layer(site: str) -> int | None:
    kind, _, number = site.rpartition(".")
    plain = number.isascii() and number.isdecimal() and len(number) <= _LONGEST_LAYER
    return int(number) if kind and plain else None
