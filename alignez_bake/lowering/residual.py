"""The residual-stream edits that do fold, because writers make the residual stream.

Behind a layer the stream is a sum, x' = x + a + m (layer input, attention writer, MLP writer), so no tensor of its
own computes it. Two edits of it are edits of its terms all the same:

1. A shift: x' + c = x + a + (m + c), the bias of that layer's MLP writer. It comes after every other edit of m.
2. A removal P = I - U Uᵀ, UᵀU = I, of a stream whose other terms lack those directions already. P x = x for such an
   x, so P x' = x + a + P m where P x = x and P a = a; where attention and MLP are parallel, both read x, and
   P x' = x + P a + P m whatever a is. x lacks them if the embedding and every writer before do: so the removal must
   stand at the (untied) embedding, at every layer from the first one on, and, where the MLP reads what attention
   wrote, at every attention writer too. One learned position embedding, which joins behind the token embedding, and
   nothing of this holds.

Both need layers whose output is that sum: no norm behind a writer or behind the sum, no multiplier of the writers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.site import Site

if TYPE_CHECKING:
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.model_folder import ModelFolder

# How far directions may be from orthonormal, from each other, and a removal from removing all of them, in units of
# ‖U‖ = √k: they are stored in fp32, and what is left of them in the stream is an error of this size.
_ROUNDING: Final = 1e-6
SHIFT_REASON: Final = "a shift behind a layer is a bias of its MLP writer"
REMOVAL_REASON: Final = (
    "the embedding and every writer before lack these directions, so removing them behind a layer is removing them "
    "from its writers"
)


class Moved(NamedTuple):
    """What an edit of the residual stream is, as edits of the writers.

    Attributes:
        edits: that do the same; they come after all others of their sites.
        reason: why they do.
    """

    edits: tuple[Edit, ...]
    reason: str


def moved_to_writers(plan: EditPlan, model: ModelFolder) -> dict[int, Moved]:
    """The residual edits of a plan that are edits of writers, by their place in the plan."""
    if not model.architecture.layers_are_sums(model.config):
        return {}
    return {**_moved_shifts(plan), **_moved_removals(plan, model)}


def _moved_shifts(plan: EditPlan) -> dict[int, Moved]:
    moved: dict[int, Moved] = {}
    for site in plan.sites:
        if site.kind != "residual":
            continue
        here = [(index, edit) for index, edit in enumerate(plan.edits) if edit.site == site]
        # Beside another edit of the stream, which would have to read the shifted stream, it stays.
        if all(edit.left is None and edit.is_linear for _, edit in here):
            writer = Site("mlp_write", site.layer)
            moved.update({index: Moved((replace(edit, site=writer),), SHIFT_REASON) for index, edit in here})
    return moved


def _moved_removals(plan: EditPlan, model: ModelFolder) -> dict[int, Moved]:
    architecture = model.architecture
    directions = _removed_at(plan, Site("embed"))
    if directions is None or architecture.learned_positions or architecture.is_tied(model.config):
        return {}
    parallel = architecture.is_parallel(model.config)
    moved: dict[int, Moved] = {}
    for layer in range(model.num_layers):
        residual, attention, mlp = (Site(kind, layer) for kind in ("residual", "attn_write", "mlp_write"))
        attention_lacks = _same(_removed_at(plan, attention), directions)
        mlp_lacks = _same(_removed_at(plan, mlp), directions)
        if _same(_removed_at(plan, residual), directions) and mlp not in plan.sites:
            targets = [mlp]
            if not attention_lacks:
                if not parallel or attention in plan.sites:
                    break
                targets.append(attention)
            (index,) = (i for i, edit in enumerate(plan.edits) if edit.site == residual)
            edits = tuple(replace(plan.edits[index], site=target) for target in targets)
            moved[index] = Moved(edits, REMOVAL_REASON)
        elif residual in plan.sites or not (attention_lacks and mlp_lacks):
            break  # from here on the stream may hold the directions again
    return moved


def _removed_at(plan: EditPlan, site: Site) -> np.ndarray | None:
    """U [d, k] of the removal that is the one edit of a site, or None."""
    edits = [edit for edit in plan.edits if edit.site == site]
    if len(edits) != 1:
        return None
    (edit,) = edits
    if edit.left is None or edit.right is None or not edit.is_linear or edit.has_constant or edit.reads != "output":
        return None
    dial = 1.0 if edit.objective is None else float(plan.weights.get(edit.objective, 1.0))
    directions = edit.right.astype(np.float64)
    bound = _ROUNDING * np.sqrt(edit.rank)
    removes = np.linalg.norm(dial * edit.strength * edit.left.astype(np.float64) + directions) <= bound
    orthonormal = np.linalg.norm(directions.T @ directions - np.eye(edit.rank)) <= bound
    return directions if removes and orthonormal else None


def _same(found: np.ndarray | None, directions: np.ndarray) -> bool:
    """Whether two orthonormal [d, k] span the same directions: nothing of one lies outside of the other."""
    if found is None or found.shape != directions.shape:
        return False
    # Not ‖UᵀV‖² = k: that is k - ‖sin θ‖², which does not see angles below the root of its tolerance.
    outside = found - directions @ (directions.T @ found)
    return bool(np.linalg.norm(outside) <= _ROUNDING * np.sqrt(found.shape[1]))
