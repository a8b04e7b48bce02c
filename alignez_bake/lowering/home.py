"""Where edits that the base has no room for live natively: an equivalent model with the biases and hidden units.

`rehome` makes the equivalent; here it is found out for which sites there is one, and what goes into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.decide import Refusal
from alignez_bake.lowering.slot import find_slot
from alignez_bake.rehome.changes import changes
from alignez_bake.rehome.rehome import rehome
from alignez_bake.rehome.units import UnitValues, unit_values, unit_writes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.lowering.fold import Write
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Site

_EXACT_BIAS = "exact: all that is added is zero but for the edits"
_EXACT_HEAD = "exact: the head becomes a tensor of its own, until then a copy of the embedding"


@dataclass(frozen=True)
class Home:
    """The model into whose tensors the edits go.

    Attributes:
        base: the base.
        model: the base, or an equivalent model.
        refused: sites that no equivalent has room for, with the reason.
        units: for each site the hidden units that carry edits of it, and those edits.
        changes: what makes `model` another model than the base, one line each.
    """

    base: ModelFolder
    model: ModelFolder
    refused: Mapping[Site, Refusal] = field(default_factory=dict)
    units: Mapping[Site, tuple[UnitValues, tuple[Edit, ...]]] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def writes(self) -> dict[str, tuple[Write, ...]]:
        """The parts of the model's tensors that hold hidden units."""
        found: dict[str, tuple[Write, ...]] = {}
        for site, (values, _) in self.units.items():
            assert site.layer is not None
            for name, write in unit_writes(self.base, self.model, site.layer, values).items():
                found[name] = (*found.get(name, ()), write)
        return found

    def exactness(self, edit: Edit) -> str:
        """How close an edit of a re-homed site comes to the hook."""
        if edit.site.kind == "lm_head":
            return _EXACT_HEAD
        values, carried = self.units.get(edit.site, (None, ()))
        return values.exactness if values is not None and any(edit is other for other in carried) else _EXACT_BIAS

    def folded_parts(self, edit: Edit) -> tuple[Edit, ...]:
        """What of an edit is folded into the model's tensors: all of it, widened where hidden units were added.

        Of edits that hidden units carry it is the constant alone, once a site: a shift, dials included.
        """
        values, carried = self.units.get(edit.site, (None, ()))
        if values is not None and any(edit is other for other in carried):
            first = edit is carried[0] and values.needs_bias
            return (Edit(edit.site, bias=values.constant),) if first else ()
        return (self.widened(edit),)

    def widened(self, edit: Edit) -> Edit:
        """The edit with the widths that its site has in the model: zeros where hidden units were added.

        What the added units give is none of the edit's business, whether it is folded or inserted.
        """
        old, new = find_slot(self.base, edit.site), find_slot(self.model, edit.site)
        if (old.d_out, old.d_in) == (new.d_out, new.d_in):
            return edit
        read_width = new.d_in if edit.reads == "input" else new.d_out
        return replace(
            edit,
            left=_padded(edit.left, new.d_out),
            right=_padded(edit.right, read_width),
            bias=_padded(edit.bias, new.d_out),
        )


def find_home(
    model: ModelFolder,
    wanted: Mapping[Site, Sequence[Edit]],
    dials: Mapping[str, float],
    *,
    dtype: str | None,
) -> Home:
    """The nearest equivalent of a base with room for edits.

    Args:
        model: the base.
        wanted: all edits of sites where some need a bias, hidden units or a head that are not there.
        dials: weight of each objective.
        dtype: file dtype that the weights will have, if it is not the base's.
    """
    if not wanted:
        return Home(model, model)
    refused: dict[Site, Refusal] = {}
    untied = any(site.kind == "lm_head" for site in wanted)
    if untied and isinstance(found := rehome(model, untied=True), Refusal):
        refused.update({site: found for site in wanted if site.kind == "lm_head"})
        untied = False
    inner = {site: edits for site, edits in wanted.items() if site.kind != "lm_head"}
    biased = [site for site, edits in inner.items() if any(edit.is_linear and edit.reads != "block" for edit in edits)]
    # Kind by kind: an architecture may have a switch for the biases of attention, and none for the MLP's.
    for kind in dict.fromkeys(site.kind for site in biased):
        of_kind = [site for site in biased if site.kind == kind]
        found = rehome(model, bias_sites=of_kind)
        if isinstance(found, Refusal):
            refused.update(dict.fromkeys(of_kind, found))
    units: dict[Site, tuple[UnitValues, tuple[Edit, ...]]] = {}
    for site, edits in inner.items():
        carried = unit_edits(edits)
        if carried and site not in refused:
            values = _units_at(model, site, carried, dials, dtype=dtype)
            if isinstance(values, Refusal):
                refused[site] = values
            else:
                units[site] = (values, carried)
    biases = {site for site in biased if site not in refused}
    biases |= {site for site, (values, _) in units.items() if values.needs_bias}
    found = rehome(model, bias_sites=biases, units=_counts(units), untied=untied)
    if isinstance(found, Refusal):
        return Home(model, model, {**refused, **dict.fromkeys(wanted, found)})
    return Home(model, found, refused, units, () if found is model else changes(model, found))


def constant_has_home(model: ModelFolder, site: Site, *, rehoming: bool = True) -> bool:
    """Whether a constant at a site can be folded: into a bias that is there, or one that an equivalent model has.

    Args:
        model: the base.
        site: the site.
        rehoming: whether the artefact may be an equivalent model, as a checkpoint may.

    Raises:
        BadInputError: the architecture lacks the site.
    """
    slot = find_slot(model, site)
    if slot.bias is not None:
        return True
    if slot.kind != "map":
        return slot.kind == "embedding" and not slot.obstacle
    return rehoming and site.layer is not None and not isinstance(rehome(model, bias_sites=[site]), Refusal)


def unit_edits(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits of one site that hidden units of the MLP can carry; none where an entry behind one reads its effect.

    A unit's value depends on what enters the MLP alone, so what it adds does not depend on other edits of the site,
    and all such effects add up, whatever their order. An entry of the same objective that reads the output is
    another matter: behind a unit's edit it would read that as well, which the fold of the base's own columns does
    not.
    """
    carried = tuple(edit for edit in edits if edit.reads == "block" and edit.positions == "all")
    for objective in {edit.objective for edit in carried}:
        chain = [edit for edit in edits if edit.objective == objective]
        first = next(place for place, edit in enumerate(chain) if any(edit is other for other in carried))
        if any(edit.left is not None and edit.reads == "output" for edit in chain[first:]):
            return ()
    return carried


def _units_at(
    model: ModelFolder,
    site: Site,
    carried: tuple[Edit, ...],
    dials: Mapping[str, float],
    *,
    dtype: str | None,
) -> UnitValues | Refusal:
    assert site.layer is not None
    if site.kind != "mlp_write":
        return Refusal("hidden units of the MLP add to what the MLP writes, not to what attention does")
    found = rehome(model, units={site.layer: 1})
    if isinstance(found, Refusal):
        return found
    present = {edit.objective for edit in carried}
    plan = EditPlan(carried, {name: weight for name, weight in dials.items() if name in present})
    file_dtype = find_slot(model, site).dtype if dtype is None else dtype
    values = unit_values(found, plan.groups_at(site), dtype=file_dtype)
    if isinstance(values, UnitValues) and values.needs_bias:
        with_bias = rehome(model, bias_sites=[site], units={site.layer: values.count})
        if isinstance(with_bias, Refusal):
            return with_bias
    return values


def _counts(units: Mapping[Site, tuple[UnitValues, tuple[Edit, ...]]]) -> dict[int, int]:
    return {site.layer: values.count for site, (values, _) in units.items() if site.layer is not None and values.count}


def _padded(array: NDArray[Any] | None, rows: int) -> NDArray[Any] | None:
    if array is None or array.shape[0] == rows:
        return array
    return np.concatenate([array, np.zeros((rows - array.shape[0], *array.shape[1:]), array.dtype)])
