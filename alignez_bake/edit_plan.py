"""An ordered set of edits with its dials: what is fitted, saved, mixed and baked.

Objectives are parallel, the entries of one objective sequential: at one site

    y' = y + Σ_o w_o (E_o(y) - y)

where E_o applies the entries of objective o in order. So the dials w_o are linear and their order does not
matter. Entries without an objective form one group, whose weight is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from alignez_bake.edit import is_finite_number
from alignez_bake.errors import BadInputError
from alignez_bake.formula import apply_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.edit import Array, Edit
    from alignez_bake.safetensors_io.mapped import MappedFile
    from alignez_bake.site import Reads, Site

__all__ = ["BaseFingerprint", "EditPlan", "Group", "SiteValues", "apply_groups"]


@dataclass(frozen=True)
class BaseFingerprint:
    """Which base model edits were made for; section "Fingerprints" of docs/edit_file.md gives the hashes."""

    model_type: str
    config_sha256: str
    tensors_sha256: str


class Group(NamedTuple):
    """The entries of one objective at one site, in order, and the dial w_o that multiplies their effect."""

    objective: str | None
    weight: float
    edits: tuple[Edit, ...]


@dataclass(frozen=True, eq=False)
class EditPlan:
    """Edits in order of application, the dials, the base they belong to, and where they come from.

    Attributes:
        edits: in order of application.
        weights: dial w_o of each objective that has one; an objective without a dial has weight 1.
        base: the base that the edits were made for; None: any base with those sites and shapes.
        provenance: JSON values that say how the edits were made.
        mapped: files that arrays of the edits lie over.
    """

    edits: tuple[Edit, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    base: BaseFingerprint | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    mapped: tuple[MappedFile, ...] = ()

    def __post_init__(self) -> None:
        """Check that every dial is a finite number and turns an objective of this plan.

        Raises:
            BadInputError: a dial of an objective that no edit has, or a weight that is not finite.
        """
        object.__setattr__(self, "edits", tuple(self.edits))
        for objective, weight in self.weights.items():
            if objective not in self.objectives:
                known = ", ".join(self.objectives) or "none"
                raise BadInputError(f"no edit has the objective {objective!r}: the plan's objectives are {known}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not is_finite_number(weight):
                raise BadInputError(f"weight {weight!r} of objective {objective!r} must be a finite number")

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in order of first appearance."""
        return tuple(dict.fromkeys(edit.objective for edit in self.edits if edit.objective is not None))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites with at least one edit, in order of first appearance."""
        return tuple(dict.fromkeys(edit.site for edit in self.edits))

    def groups_at(self, site: Site) -> tuple[Group, ...]:
        """The parallel groups at one site, in order of first appearance."""
        by_objective: dict[str | None, list[Edit]] = {}
        for edit in self.edits:
            if edit.site == site:
                by_objective.setdefault(edit.objective, []).append(edit)
        return tuple(
            Group(objective, 1.0 if objective is None else float(self.weights.get(objective, 1.0)), tuple(edits))
            for objective, edits in by_objective.items()
        )

    def with_weights(self, weights: Mapping[str, float]) -> EditPlan:
        """The same edits with other dials; objectives that are not named keep theirs."""
        return replace(self, weights={**self.weights, **weights})

    def scaled(self, factor: float) -> EditPlan:
        """Every edit's strength multiplied by `factor`."""
        return replace(self, edits=tuple(edit.scaled(factor) for edit in self.edits))

    def check_files(self) -> None:
        """Refuse edits whose values may have changed since they were read; called before a result of them is shown.

        Raises:
            BadInputError: a file that arrays lie over was written into.
        """
        for file in self.mapped:
            file.check_not_written_into()

    def mixed_with(self, other: EditPlan) -> EditPlan:
        """The edits of both plans, for the same base.

        Raises:
            BadInputError: the plans were made for different bases, or share an objective (or both have
                entries without one), whose entries would then be chained instead of added.
        """
        if self.base is not None and other.base is not None and self.base != other.base:
            raise BadInputError("edits made for different bases cannot be mixed")
        shared = {edit.objective for edit in self.edits} & {edit.objective for edit in other.edits}
        if shared:
            names = ", ".join(sorted(str(name) for name in shared))
            raise BadInputError(f"both plans have the objective {names}: give each objective a name of its own")
        return EditPlan(
            edits=self.edits + other.edits,
            weights={**self.weights, **other.weights},
            base=self.base or other.base,
            provenance={"mixed": [dict(self.provenance), dict(other.provenance)]},
            mapped=self.mapped + other.mapped,
        )


class SiteValues(NamedTuple):
    """What the edits at a site may read: y, z and the block's input; the ones nobody reads may be None."""

    output: Any
    input: Any = None
    block: Any = None

    def read(self, reads: Reads, current: Array) -> Array:
        """r of an entry, given the output `current` that the entries before it in its group left."""
        value = current if reads == "output" else self.input if reads == "input" else self.block
        assert value is not None, f"an edit reads {reads!r}, which was not recorded"
        result: Array = value
        return result
