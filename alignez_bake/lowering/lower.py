"""The choice of a way for every edit of a plan: fold, re-home, insert, or refuse with the reason.

All edits of one site go the same way, since the entries of an objective are applied one after the other: a linear
entry behind one that does not fold reads what that one left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.inserted.model import SiteInsert
from alignez_bake.lowering.decide import Decision, Lowering, MapFold, Refusal, fold_refusal
from alignez_bake.lowering.home import find_home, unit_edits
from alignez_bake.lowering.residual import moved_to_writers
from alignez_bake.lowering.slot import Slot, find_slot

if TYPE_CHECKING:
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Route, Target
    from alignez_bake.lowering.home import Home
    from alignez_bake.lowering.residual import Moved
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Site

_LINEAR: Final = {
    "map": "a linear edit of every position of a linear map's output",
    "experts": "a linear edit of a weighed sum of experts: the same in every expert",
    "embedding": "a linear edit of an embedding that is not tied to the head",
}


@dataclass(frozen=True)
class _Entry:
    """One edit on its way: its place in the plan, and what stands for it at one site."""

    index: int
    edit: Edit
    moved_because: str = ""


@dataclass(frozen=True)
class _SiteWay:
    """The way of all edits of a site."""

    site: Site
    entries: tuple[_Entry, ...]
    slot: Slot | None
    route: Route
    reason: str


class _Options(NamedTuple):
    """As `lower`; `code` is what is left of it where folding is required."""

    code: bool
    require_fold: bool
    dtype: str | None


def lower(
    plan: EditPlan,
    model: ModelFolder,
    target: Target,
    *,
    code: bool = False,
    require_fold: bool = False,
    dtype: str | None = None,
) -> Lowering:
    """Decide for each edit how it goes into the artefact `target`. Nothing is read but headers.

    Args:
        plan: the edits.
        model: the base.
        target: the exporter.
        code: whether the artefact may need a code file of its own, that is, inserted modules.
        require_fold: whether it must not, whatever `code` says.
        dtype: file dtype that the weights will have, such as "F16", if it is not the base's.

    Returns:
        The decisions; refusing is a value, which `Lowering.require_complete` turns into an error.
    """
    if not {"rehome", "insert"} & target.routes:
        return _carried(plan, model, target)
    options = _Options(code and not require_fold, require_fold, dtype)
    moved = moved_to_writers(plan, model)
    lowering = _lowered(plan, model, target, _entries(plan, moved), options)
    if moved and any(
        decision.route in ("insert", "refuse") for decision in lowering.decisions if decision.index in moved
    ):
        # Where the writers have no room for what was moved to them, the residual stream's own module carries it.
        return _lowered(plan, model, target, _entries(plan, {}), options)
    return lowering


def _entries(plan: EditPlan, moved: dict[int, Moved]) -> list[_Entry]:
    """The plan's edits in order, those that are moved to writers at the end: they come after all others there."""
    staying = [_Entry(index, edit) for index, edit in enumerate(plan.edits) if index not in moved]
    return staying + [_Entry(index, edit, way.reason) for index, way in moved.items() for edit in way.edits]


def _carried(plan: EditPlan, model: ModelFolder, target: Target) -> Lowering:
    """For artefacts that leave the base as it is: each edit by itself."""
    decisions: list[Decision] = []
    slots: dict[Site, Slot] = {}
    for index, edit in enumerate(plan.edits):
        try:
            slot = slots.setdefault(edit.site, find_slot(model, edit.site))
        except BadInputError as error:
            decisions.append(Decision(index, edit, "refuse", str(error)))
            continue
        refusal = _misfit(edit, slot) or target.supports(edit, slot)
        if refusal is not None:
            decisions.append(Decision(index, edit, "refuse", refusal.reason))
            continue
        folds = "fold" in target.routes and fold_refusal(edit, slot) is None
        route: Route = "fold" if folds else "carry"
        reason = _LINEAR[slot.kind] if folds else "the artefact's own runtime applies it"
        decisions.append(Decision(index, edit, route, reason, target.exactness, target.cost))
    folded = _part(plan, [decision.edit for decision in decisions if decision.route == "fold"])
    refused = {decision.edit.site for decision in decisions if decision.route == "refuse"}
    sites = [site for site in plan.sites if site in folded.sites and site not in refused]
    maps = tuple(MapFold(slots[site], folded.groups_at(site)) for site in sites)
    return Lowering(plan, target.name, model, tuple(decisions), maps)


def _lowered(plan: EditPlan, model: ModelFolder, target: Target, entries: list[_Entry], options: _Options) -> Lowering:
    by_site: dict[Site, list[_Entry]] = {}
    for entry in entries:
        by_site.setdefault(entry.edit.site, []).append(entry)
    ways = [_site_way(model, target, site, tuple(found)) for site, found in by_site.items()]
    homeless = [way for way in ways if way.route == "rehome" and "rehome" in target.routes]
    wanted = {way.site: tuple(entry.edit for entry in way.entries) for way in homeless}
    home = find_home(model, wanted, _dials(plan, [entry.edit for entry in entries]), dtype=options.dtype)
    ways = [_settled(way, home, target, options) for way in ways]

    native = [entry.edit for way in ways if way.route in ("fold", "rehome") for entry in way.entries]
    folded = _part(plan, [part for edit in native for part in home.folded_parts(edit)])
    modules = [entry.edit for way in ways if way.route == "insert" for entry in way.entries]
    inserted = _part(plan, [home.widened(edit) for edit in modules])
    return Lowering(
        plan,
        target.name,
        home.model,
        tuple(_decisions(plan, ways, home)),
        tuple(MapFold(find_slot(home.model, site), folded.groups_at(site)) for site in folded.sites),
        home.writes,
        tuple(SiteInsert(site, inserted.groups_at(site)) for site in inserted.sites),
        home.changes,
        options.dtype,
    )


def _site_way(model: ModelFolder, target: Target, site: Site, entries: tuple[_Entry, ...]) -> _SiteWay:
    """The first way that the site's edits allow: into tensors that are there, elsewhere natively, or as a module."""
    try:
        slot = find_slot(model, site)
    except BadInputError as error:
        return _SiteWay(site, entries, None, "refuse", str(error))
    for entry in entries:
        misfit = _misfit(entry.edit, slot)
        if misfit is not None:
            return _SiteWay(site, entries, slot, "refuse", misfit.reason)
    obstacles = {entry.index: refusal for entry in entries if (refusal := target.supports(entry.edit, slot))}
    if not obstacles:
        return _SiteWay(site, entries, slot, "fold", _LINEAR[slot.kind])
    reason = next(iter(obstacles.values())).reason
    edits = tuple(entry.edit for entry in entries)
    unsupported = [entry.edit for entry in entries if entry.index in obstacles]
    if site.kind == "lm_head":
        has_equivalent = all(edit.is_linear and not edit.has_constant for edit in unsupported)
    else:
        has_equivalent = slot.kind == "map" and all(
            _lacks_a_bias(edit) or edit in unit_edits(edits) for edit in unsupported
        )
    if has_equivalent:
        return _SiteWay(site, entries, slot, "rehome", reason)
    return _SiteWay(site, entries, slot, "insert", reason)


def _lacks_a_bias(edit: Edit) -> bool:
    return edit.is_linear and edit.reads != "block" and edit.has_constant


def _settled(way: _SiteWay, home: Home, target: Target, options: _Options) -> _SiteWay:
    """The way after it is known what the new home offers and what the target carries."""
    route, reason = way.route, way.reason
    if route == "rehome":
        refusal = home.refused.get(way.site)
        if refusal is None and "rehome" in target.routes:
            return way
        route = "insert"
        reason = f"{reason}; {refusal.reason}" if refusal is not None else reason
    if route == "insert" and "insert" not in target.routes:
        return _SiteWay(way.site, way.entries, way.slot, "refuse", reason)
    if route == "insert" and not options.code:
        way_out = "--require-fold rules that out" if options.require_fold else "--trust-remote-code allows it"
        reason = f"{reason}; it needs an inserted module, a small code file in the result: {way_out}"
        return _SiteWay(way.site, way.entries, way.slot, "refuse", reason)
    return _SiteWay(way.site, way.entries, way.slot, route, reason)


def _decisions(plan: EditPlan, ways: list[_SiteWay], home: Home) -> list[Decision]:
    """One decision an edit; an edit that stands at two sites has the weaker of two ways, which are never different."""
    found: dict[int, Decision] = {}
    for way in ways:
        for entry in way.entries:
            reason = f"{entry.moved_because}; {way.reason}" if entry.moved_because else way.reason
            exactness, cost = _exactness_and_cost(way, entry.edit, home)
            decision = Decision(entry.index, plan.edits[entry.index], way.route, reason, exactness, cost)
            if entry.index not in found or way.route in ("refuse", "insert"):
                found[entry.index] = decision
    return [found[index] for index in sorted(found)]


def _exactness_and_cost(way: _SiteWay, edit: Edit, home: Home) -> tuple[str, str]:
    dtype = way.slot.dtype if way.slot is not None else ""
    if way.route == "fold":
        return f"exact, rounded once to {dtype}", "none: same tensors"
    if way.route == "rehome":
        return f"{home.exactness(edit)}, rounded once to {dtype}", "; ".join(home.changes)
    if way.route == "insert":
        added = sum(array.size for array in (edit.left, edit.right, edit.offset, edit.bias) if array is not None)
        return "exact: the formula itself, in fp32 (fp64 for fp64 weights)", f"a code file; {added} parameters in fp32"
    return "", ""


def _part(plan: EditPlan, edits: list[Edit]) -> EditPlan:
    """Some edits of a plan, or what stands for them, with their dials."""
    return EditPlan(tuple(edits), _dials(plan, edits))


def _dials(plan: EditPlan, edits: list[Edit]) -> dict[str, float]:
    """The plan's dials of the objectives that some edits have."""
    present = {edit.objective for edit in edits}
    return {name: weight for name, weight in plan.weights.items() if name in present}


def _misfit(edit: Edit, slot: Slot) -> Refusal | None:
    """Refuse what no way can carry: another model's widths, or an input where there are many."""
    expected_read = slot.d_in if edit.reads == "input" else slot.d_out
    if edit.d_out != slot.d_out:
        return Refusal(f"the edit has width {edit.d_out}, the site's output has {slot.d_out}")
    if slot.kind == "experts" and edit.reads == "input":
        return Refusal("it reads the writer's input, but every expert has one of its own")
    # What enters a block is the normed residual stream, as wide as what its writer gives.
    if edit.d_read not in (None, expected_read):
        return Refusal(f"the edit reads {edit.d_read} values, the site's {edit.reads} has {expected_read}")
    return None
