"""The way of every edit into a graph: into the weight of its map, or as nodes behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Decision
from alignez_bake.onnx_patch.graph_map import GraphMap, block_input, check_widths, find_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan, Group
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.site import Site


@dataclass(frozen=True)
class SitePatch:
    """What happens at one site. Its edits go one way together: they are applied in order, and read each other.

    Attributes:
        graph_map: of the site.
        groups: the parallel groups of its edits.
        block: name of the value that enters the module, where an edit reads it.
        folds: whether all edits go into the weight and the bias.
        reason: why.
    """

    graph_map: GraphMap
    groups: tuple[Group, ...]
    block: str | None
    folds: bool
    reason: str

    @property
    def site(self) -> Site:
        """The site."""
        return self.graph_map.site

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits of the site."""
        return tuple(edit for group in self.groups for edit in group.edits)


def site_patches(graph: BaseGraph, plan: EditPlan, *, require_fold: bool) -> tuple[SitePatch, ...]:
    """The way of every site's edits.

    Args:
        graph: the graph.
        plan: the edits.
        require_fold: refuse what needs nodes of its own. A constant that gets an Add where the map had no bias does
            not: the result is the same map with a bias.

    Raises:
        BadInputError: a plan without edits, sites that the graph lacks, widths that do not fit, or edits that do not
            fold where that is asked for.
    """
    if not plan.edits:
        raise BadInputError("there are no edits to bake")
    patches = tuple(_site_patch(graph, plan, site) for site in plan.sites)
    inserted = [patch for patch in patches if not patch.folds]
    if require_fold and inserted:
        listed = "; ".join(f"{patch.site}: {patch.reason}" for patch in inserted)
        raise BadInputError(f"{len(inserted)} of {len(patches)} sites cannot be folded into the graph: {listed}")
    return patches


def decisions_of(plan: EditPlan, patches: Sequence[SitePatch]) -> tuple[Decision, ...]:
    """One decision an edit, in the order of the plan."""
    by_site = {patch.site: patch for patch in patches}
    return tuple(_decision(index, edit, by_site[edit.site]) for index, edit in enumerate(plan.edits))


def _site_patch(graph: BaseGraph, plan: EditPlan, site: Site) -> SitePatch:
    graph_map, groups = find_map(graph, site), plan.groups_at(site)
    edits = [edit for group in groups for edit in group.edits]
    block, width = block_input(graph, site) if any(edit.reads == "block" for edit in edits) else (None, None)
    for edit in edits:
        check_widths(edit, graph_map, width)
    if graph_map.quantised:
        return SitePatch(
            graph_map, groups, block, folds=False, reason="the map's weight is quantised: a branch beside it"
        )
    obstacles = [obstacle for edit in edits if (obstacle := _obstacle(edit)) is not None]
    return SitePatch(graph_map, groups, block, not obstacles, obstacles[0] if obstacles else "a linear edit of a map")


def _obstacle(edit: Edit) -> str | None:
    """Why an edit cannot be part of an affine map of z at every position; None if it can."""
    if edit.gate != "identity":
        return f"gate {edit.gate!r} is not linear, so no weight can hold it"
    if edit.positions != "all":
        return "only the last position is edited, but a weight acts on all"
    if edit.reads == "block":
        return "it reads what enters the block, which is not the writer's input"
    return None


def _decision(index: int, edit: Edit, patch: SitePatch) -> Decision:
    dtype = patch.graph_map.dtype
    if patch.folds:
        adds = patch.graph_map.bias is None and edit.has_constant
        cost = "one Add at the site, whose map had no bias" if adds else "none: same nodes"
        return Decision(index, edit, "fold", patch.reason, f"exact, rounded once to {dtype}", cost)
    return Decision(index, edit, "insert", patch.reason, f"the formula itself, computed in {dtype}", "nodes of its own")
