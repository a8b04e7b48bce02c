"""What every method offers, what it is given, and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

from alignez_bake.capture.spec import CONTEXTS
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.capture.recorder import MapReading
    from alignez_bake.capture.spec import CaptureSpec, Context
    from alignez_bake.capture.statistics import ActivationStatistics
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.readout import Readout
    from alignez_bake.site import Site

    JsonValue = str | int | float | list[int] | list[float]

T = TypeVar("T")
TopLayers = int | Literal["auto"]
"""How many layers to edit; `auto`: as many as the method's own rule takes."""


class CaptureFunction(Protocol):
    """Records what is asked for; `capture.run.Capture` is the one that runs a model."""

    def __call__(
        self,
        specs: Sequence[CaptureSpec],
        plan_so_far: EditPlan | None = None,
        *,
        edited: Collection[Context] = CONTEXTS,
    ) -> ActivationStatistics:
        """Run every forward pass that the specs need, once, with `plan_so_far` in place in the contexts `edited`."""

    def left_alone(
        self, readings: Sequence[MapReading], plan_so_far: EditPlan | None = None
    ) -> Mapping[MapReading, NDArray[np.float32]] | None:
        """What maps read and give on texts that edits should leave alone, [tokens, width] each; None: there are none.

        Args:
            readings: which sides of which maps.
            plan_so_far: edits that are there already; None: none.

        Raises:
            BadInputError: a site or a reading that the model does not have.
        """

    def readout(self) -> Readout:
        """What turns the stream behind the last layer into predictions, of the model without edits.

        Raises:
            BadInputError: the model reads out otherwise than by a norm and a head.
        """

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives; a capture that remembers keeps it, for fits that differ in nothing that `key` says.

        Args:
            key: all that the result depends on, beside the pairs.
            make: what is to be called where nothing is kept.
        """


@dataclass(frozen=True)
class MethodSettings:
    """What a user can turn, the same for every method.

    Attributes:
        strength: the method's own (ridge: γ; alignez_v1, shift: a); None: the method's default.
        rank: columns of each edit; None: the method's default.
        penalty: λ of the method's ridge; None: the method's default. For methods that are a `ReducedRank`.
        seed: for methods that draw random numbers; the fits of a method that draws none do not depend on it.
        objective: name that the edits carry.
        gated: the method's own non-linear operators instead of their linear form; for methods that have gates.
        top_layers: edit only this many of the layers, those that score best, or as many as the method's own rule
            takes; None: all. For methods that score layers.
        untie: change a head that is tied to the embedding as well, which makes it a tensor of its own; for methods that
            change what is read out.
    """

    strength: float | None = None
    rank: int | None = None
    penalty: float | None = None
    seed: int = 0
    objective: str | None = None
    gated: bool = False
    top_layers: TopLayers | None = None
    untie: bool = False

    def __post_init__(self) -> None:
        """Refuse what no method can use; what depends on the model's width is checked by the fit.

        Raises:
            BadInputError: a rank or a number of top layers below 1; a λ that is no positive number.
        """
        if self.rank is not None and self.rank < 1:
            raise BadInputError(f"rank {self.rank} is not possible: an edit needs a rank of at least 1")
        if self.penalty is not None and not (math.isfinite(self.penalty) and self.penalty > 0):
            raise BadInputError(f"penalty {self.penalty:g} is not possible: λ must be a finite number above 0")
        if isinstance(self.top_layers, int) and self.top_layers < 1:
            raise BadInputError(f"top layers {self.top_layers} is not possible: at least 1 layer must be edited")


@dataclass(frozen=True)
class SiteReport:
    """What the fit found at one site, for reports.

    Attributes:
        site: where.
        figures: JSON values by name; every method lists the names it uses in its docstring.
        skipped: why the site got no edit, or None.
    """

    site: Site
    figures: Mapping[str, JsonValue] = field(default_factory=dict)
    skipped: str | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """One flat JSON object."""
        skipped = {} if self.skipped is None else {"skipped": self.skipped}
        return {"site": str(self.site), **self.figures, **skipped}


@dataclass(frozen=True)
class FitResult:
    """The edits of one objective in order of application, and what was found at every site.

    Attributes:
        edits: in order of application.
        sites: one report for every site that was looked at.
        notes: sentences that must stand beside the edits, such as what was frozen.
    """

    edits: tuple[Edit, ...]
    sites: tuple[SiteReport, ...]
    notes: tuple[str, ...] = ()


class Method(Protocol):
    """One way to find edits from recorded activations.

    Attributes:
        name: as on the command line.
        default_strength: where none is given.
        needs_bias: whether its edits hold constants, which need a bias to be folded into.
        has_gates: whether it has non-linear operators, which `MethodSettings.gated` asks for.
        scores_layers: whether it scores layers, which `MethodSettings.top_layers` needs.
    """

    @property
    def name(self) -> str:
        """The method's name."""

    @property
    def default_strength(self) -> float:
        """The strength where none is given."""

    @property
    def needs_bias(self) -> bool:
        """Whether its edits hold constants."""

    @property
    def has_gates(self) -> bool:
        """Whether it has non-linear operators."""

    @property
    def scores_layers(self) -> bool:
        """Whether it scores layers."""

    def sites(self, architecture: Architecture, layers: Sequence[int]) -> list[Site]:
        """The sites that it edits in these layers, known before anything runs.

        Raises:
            BadInputError: the architecture has no such site.
        """

    def fit(
        self, capture: CaptureFunction, architecture: Architecture, layers: Sequence[int], settings: MethodSettings
    ) -> FitResult:
        """Find the edits of one objective.

        Raises:
            BadInputError: settings that the model's width does not allow, or activations that hold nothing to
                fit; the message names the site.
        """


@runtime_checkable
class ReducedRank(Protocol):
    """A method whose edits are penalised fits of a rank: both can be turned."""

    @property
    def default_rank(self) -> int:
        """k where none is given; less where a map is narrower."""

    @property
    def default_penalty(self) -> float:
        """λ where none is given."""

    @property
    def other_rank(self) -> int:
        """k that a search tries beside it."""

    @property
    def other_penalty(self) -> float:
        """λ that a search tries with that rank."""


@runtime_checkable
class ReadsOut(Protocol):
    """A method that changes what is read out behind the model's last layer, in that layer and in the head."""

    @property
    def needs_last_layer(self) -> bool:
        """Whether it cannot do without the last layer."""


@runtime_checkable
class LeavesAlone(Protocol):
    """A method whose fits see texts that are to be left alone (`CaptureFunction.left_alone`)."""

    @property
    def leaves_texts_alone(self) -> bool:
        """Whether they do."""
