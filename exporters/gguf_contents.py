"""What edits become in GGUF: low-rank pairs for a LoRA adapter, vectors for the residual stream.

The edits of one map are (B, A, Δb) of `low_rank`, so that y' = (W + B A) z + b + Δb. A LoRA adapter of llama.cpp
carries B A. It has no place for Δb; but behind a layer the residual stream is x' = x + a + m (layer input, attention
writer, MLP writer), so where no norm and no multiplier follows the MLP writer, m + Δb is x' + Δb, which a control
vector carries. A shift of the residual stream itself is another term of the same vector. The stream behind layer 0 has
no such vector.

Of a mixture of experts, whose weighed sum y = Σ_e p_e W_e z_e an edit y + L Rᵀ y reads, every expert gets the same
edit: W_e + L (Rᵀ W_e). Its constant joins the block's output once, so it goes into the vector as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from alignez_bake.exporters.adapter_pairs import AdaptedModule, Pair, adapter_bytes
from alignez_bake.exporters.gguf_files import LoraPair
from alignez_bake.exporters.gguf_names import LLAMA_CPP_NAMES

from alignez_bake.low_rank import low_rank
from alignez_bake.lowering.decide import MapFold, Refusal, fold_refusal
from alignez_bake.lowering.slot import find_slot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.site import Site

FIRST_LAYER: Final = 1
"""The first layer behind which llama.cpp adds a control vector."""


class EditedMap(NamedTuple):
    """What an adapter adds to one map, or to the last maps of all experts.

    Attributes:
        module: its path, as gguf's table knows it.
        pair: B [experts, d_out, r] and A [experts, r, d_in] in float64; the constant is not the adapter's.
        is_experts: whether the file's tensor has a dimension for experts.
    """

    module: str
    pair: Pair
    is_experts: bool

    def rounded(self) -> LoraPair:
        """As the file holds it.

        Raises:
            BadInputError: float32 cannot hold a value.
        """
        which: slice | int = slice(None) if self.is_experts else 0
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            return LoraPair(
                self.module,
                self.pair.a_matrix[which].astype(np.float32),
                self.pair.b_matrix[which].astype(np.float32),
            )


class GgufContents(NamedTuple):
    """What the files of a plan hold.

    Attributes:
        maps: their pairs; empty where no edit has a rank.
        rank: of every pair, those of a lower rank filled up with zeros. It is the file's alpha as well: llama.cpp
            multiplies by alpha / rank, which is then exactly 1.
        shifts: by layer what joins the residual stream behind it, [d] float64; empty where nothing does.
    """

    maps: tuple[EditedMap, ...]
    rank: int
    shifts: Mapping[int, NDArray[np.float64]]

    def rounded_shifts(self) -> dict[int, NDArray[np.float32]]:
        """As the file holds them; what float32 cannot hold becomes infinite, which writing refuses."""
        with np.errstate(over="ignore"):
            return {layer: shift.astype(np.float32) for layer, shift in self.shifts.items()}


def gguf_refusal(edit: Edit, slot: Slot) -> Refusal | None:
    """Why neither a LoRA adapter nor a control vector can carry an edit; None if they can."""
    if slot.model_type not in LLAMA_CPP_NAMES:
        return Refusal(f"llama.cpp has no architecture for model_type {slot.model_type!r}")
    if not edit.is_linear or edit.reads == "block":
        return fold_refusal(edit, slot)
    if slot.kind == "embedding":
        return Refusal("a GGUF adapter of the embedding would hold a row for every token of the vocabulary")
    if slot.kind == "stream" and edit.left is not None:
        return Refusal("llama.cpp adds one vector to the residual stream, which cannot depend on the stream")
    return _constant_refusal(edit, slot) if _may_have_constant(edit, slot) else None


def _constant_refusal(edit: Edit, slot: Slot) -> Refusal | None:
    if slot.site.kind not in ("residual", "mlp_write"):
        return Refusal(f"it adds a constant{_because_of_bias(edit, slot)}, for which a GGUF adapter has no place")
    if (between := slot.post_norm or slot.multiplier) is not None:
        return Refusal(
            f"it adds a constant{_because_of_bias(edit, slot)} before {between}, where a control vector adds "
            "behind it: put the shift at 'residual'"
        )
    if _layer(slot.site) < FIRST_LAYER:
        return Refusal(
            f"it adds a constant{_because_of_bias(edit, slot)}, which a control vector carries from layer "
            f"{FIRST_LAYER} on only"
        )
    return None


def gguf_contents(model: ModelFolder, plan: EditPlan, progress: Progress) -> GgufContents:
    """The pairs and vectors of a plan, in float64.

    Args:
        model: the base; one of its weights is in memory at a time.
        plan: edits that `gguf_refusal` lets pass.
        progress: counts maps.

    Raises:
        BadInputError: a damaged base, or strengths far too large.
    """
    modules = _edited_maps(model, plan)
    rank = max((module.rank for module in modules), default=0)
    maps: list[EditedMap] = []
    shifts = _stream_shifts(plan)
    with progress.task("computing pairs", len(modules)) as advance:
        for module in modules:
            slot, pair = module.folds[0].slot, module.pair(rank, model.tensors)
            if module.rank > 0:
                maps.append(EditedMap(module.path, pair, slot.kind == "experts"))
            if pair.bias.any():
                layer = _layer(slot.site)
                shifts[layer] = shifts.get(layer, 0.0) + pair.bias
            advance()
    return GgufContents(tuple(maps), rank, dict(sorted(shifts.items())))


def contents_bytes(model: ModelFolder, plan: EditPlan) -> int:
    """About how many bytes the values take, from headers and ranks alone."""
    modules = _edited_maps(model, plan)
    shapes = [(module.d_out, module.d_in) for module in modules for _ in module.weights]
    width = max((edit.d_out for edit in plan.edits), default=0)
    vectors = np.dtype(np.float32).itemsize * width * model.num_layers
    return adapter_bytes(shapes, max((module.rank for module in modules), default=0)) + vectors


def _edited_maps(model: ModelFolder, plan: EditPlan) -> list[AdaptedModule]:
    """The maps that a plan edits, each under the path that gguf's table knows, in order of the edits."""
    by_weight: dict[str, list[MapFold]] = {}
    for site in plan.sites:
        slot = find_slot(model, site)
        if slot.kind in ("map", "experts"):
            by_weight.setdefault(slot.weight, []).append(MapFold(slot, plan.groups_at(site)))
    modules = []
    for folds in by_weight.values():
        slot = folds[0].slot
        linear = model.architecture.linear_site(slot.site.kind, slot.site.layer)
        path = model.architecture.module_path(slot.site)
        if linear.experts is not None:
            path = f"{model.architecture.layer_path(_layer(slot.site))}.{linear.experts.replace('.{expert}', '')}"
        shape = model.tensors.entry(slot.weight).shape
        d_out, d_in = shape if slot.layout == "out_in" else shape[::-1]
        modules.append(AdaptedModule(path, None, tuple(folds), d_out, d_in))
    return modules


def _stream_shifts(plan: EditPlan) -> dict[int, NDArray[np.float64]]:
    """What shifts of the residual stream itself add, by layer."""
    shifts = {}
    for site in plan.sites:
        if site.kind == "residual":
            groups = plan.groups_at(site)
            # Shifts alone come here, which read nothing: any weight gives their sum.
            constant = low_rank(groups, np.zeros((groups[0].edits[0].d_out, 0)), None).delta_bias
            if constant.any():
                shifts[_layer(site)] = constant
    return shifts


def _may_have_constant(edit: Edit, slot: Slot) -> bool:
    """By the edit and the headers alone: one that reads y = W z + b of a map with a bias adds L Rᵀ b."""
    return edit.has_constant or _reads_a_bias(edit, slot)


def _reads_a_bias(edit: Edit, slot: Slot) -> bool:
    return edit.left is not None and edit.reads == "output" and slot.bias is not None


def _because_of_bias(edit: Edit, slot: Slot) -> str:
    return "" if edit.has_constant or not _reads_a_bias(edit, slot) else f", because it reads the bias {slot.bias}"


def _layer(site: Site) -> int:
    assert site.layer is not None
    return site.layer
