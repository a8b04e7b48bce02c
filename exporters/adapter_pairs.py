"""The pairs (B, A) of a LoRA adapter, and the constants, that equal the edits of a plan.

An adapter adds B A z + β to the output of a map y = W z + b: what `low_rank` gives as (B, A, Δb), with β = Δb =
strength · (L (Rᵀ b + s) + c) for one edit that reads the output, and W + B A, b + β once it is merged.

Sites of one stored map (phi3's gate and up) share its pair: their columns stand side by side, and a row of B that is
not a site's own is zero. All pairs have one rank, filled up with zeros, because servers ignore patterns of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.low_rank import low_rank

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from alignez_bake.edit_plan import Group
    from alignez_bake.lowering.decide import Lowering, MapFold
    from alignez_bake.lowering.slot import Slot, TensorSource
    from alignez_bake.model_folder import ModelFolder

    Float64Array = NDArray[np.float64]


class FusedExperts(NamedTuple):
    """Where the last maps of all experts lie in a live model: one parameter [experts, d_out, d_in].

    Attributes:
        module: path of the module that holds it, below the module of the site.
        parameter: its name there.
    """

    module: str
    parameter: str


# Files name every expert's map by itself; transformers stacks them when it loads.
_STACKED: Final = FusedExperts("experts", "down_proj")
FUSED_EXPERTS: Final[Mapping[str, FusedExperts]] = {
    "mixtral": _STACKED,
    "qwen3_moe": _STACKED,
    "deepseek_v3": _STACKED,
}

# In models with experts PEFT takes each module of the name `down_proj` or `gate_proj` for the stacked experts, also the
# map of shared experts and those of layers without any. As parameters they are found.
_WEIGHT: Final = "weight"
_FLOAT_BYTES: Final = 4
# Name, dtype, shape and offsets of one tensor in the header of a safetensors file.
_HEADER_BYTES: Final = 160


class Pair(NamedTuple):
    """What an adapter adds to one module.

    Attributes:
        b_matrix: B [experts, d_out, r].
        a_matrix: A [experts, r, d_in].
        bias: β [d_out].
    """

    b_matrix: Float64Array
    a_matrix: Float64Array
    bias: Float64Array


@dataclass(frozen=True)
class AdaptedModule:
    """A module that an adapter changes.

    Attributes:
        path: its path in the live model.
        parameter: of experts, the name of the stacked parameter, and `weight` of maps that stand for some or are named
            like some; None for another linear map.
        folds: the sites in it with their edits.
        d_out: width of its whole output, of which a site may be a part.
        d_in: width of its input.
    """

    path: str
    parameter: str | None
    folds: tuple[MapFold, ...]
    d_out: int
    d_in: int

    @property
    def weights(self) -> tuple[str, ...]:
        """Keys of its weights in the base's files: one, or one an expert."""
        return self.folds[0].slot.weights

    @property
    def has_bias(self) -> bool:
        """Whether the map has a bias, to which a constant can be merged."""
        return self.folds[0].slot.bias is not None

    @property
    def rank(self) -> int:
        """Columns of B that the edits need: the sum of their ranks, each site's beside the other's."""
        return sum(edit.rank for fold in self.folds for group in _active(fold) for edit in group.edits)

    def needs_constant(self, source: TensorSource) -> bool:
        """Whether β can be other than zero: Rᵀ b is, where an edit reads the output of a map with a bias."""
        edits = [(fold.slot, edit) for fold in self.folds for group in _active(fold) for edit in group.edits]
        if any(edit.has_constant for _, edit in edits):
            return True
        reading = [slot for slot, edit in edits if edit.reads == "output" and edit.rank > 0]
        return any(slot.bias is not None and source.read(slot.bias)[slot.rows].any() for slot in reading)

    def pair(self, rank: int, source: TensorSource) -> Pair:
        """The pair, filled up to `rank` with zeros; one weight is read at a time.

        Raises:
            BadInputError: weights that are not finite, edits that do not fit.
        """
        experts = len(self.weights)
        pair = Pair(np.zeros((experts, self.d_out, rank)), np.zeros((experts, rank, self.d_in)), np.zeros(self.d_out))
        for expert, name in enumerate(self.weights):
            stored = source.read(name)
            column = 0
            for fold in self.folds:
                slot = fold.slot
                bias = None if slot.bias is None else source.read(slot.bias)[slot.rows]
                with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
                    change = low_rank(_active(fold), slot.weight_rows(stored), bias)
                end = column + change.a_matrix.shape[0]
                pair.b_matrix[expert, slot.rows, column:end] = change.b_matrix
                pair.a_matrix[expert, column:end] = change.a_matrix
                pair.bias[slot.rows] = change.delta_bias
                column = end
        if not all(np.isfinite(part).all() for part in pair):
            raise BadInputError(
                f"the edits of {self.path} give values that are not finite: its weights {self.weights[0]} are "
                "damaged, or a strength is far too large"
            )
        return pair


@dataclass(frozen=True)
class AdapterLayout:
    """What an adapter holds, known without its values.

    Attributes:
        modules: what it changes, in order of the edits.
        rank: of every pair, at least 1.
        constants: whether every pair has a β.
    """

    modules: tuple[AdaptedModule, ...]
    rank: int
    constants: bool


def adapter_layout(base: ModelFolder, lowering: Lowering) -> AdapterLayout:
    """The layout of the adapter that equals the folds of a lowering; of the tensors only biases are read.

    Raises:
        BadInputError: a constant beside a map without bias, or experts whose stacked parameter is not known.
    """
    by_weight: dict[str, list[MapFold]] = {}
    for fold in (part for whole in lowering.folds for part in _parts(base, whole)):
        by_weight.setdefault(fold.slot.weight, []).append(fold)
    modules = tuple(_adapted_module(base, tuple(folds)) for folds in by_weight.values())
    needing = [module.path for module in modules if module.needs_constant(base.tensors)]
    lacking = [module.path for module in modules if not module.has_bias]
    if needing and lacking:
        raise BadInputError(
            f"the edits of {len(needing)} map(s) such as {needing[0]} have a constant, L (Rᵀ b + s) + c, and PEFT "
            f"gives either all maps of an adapter one or none; but {len(lacking)} map(s) such as {lacking[0]} have no "
            "bias to which it could be merged: bake the two kinds of sites as two adapters, or use --as checkpoint"
        )
    return AdapterLayout(modules, max([1, *(module.rank for module in modules)]), constants=bool(needing))


def adapter_bytes(shapes: Iterable[tuple[int, int]], rank: int, *, constants: bool = False) -> int:
    """Size of the file of an adapter, about.

    Args:
        shapes: (d_out, d_in) of each map, once an expert.
        rank: of every pair.
        constants: whether every map has a β.
    """
    maps = list(shapes)
    values = sum(rank * (d_out + d_in) + (d_out if constants else 0) for d_out, d_in in maps)
    return _FLOAT_BYTES * values + _HEADER_BYTES * (3 if constants else 2) * len(maps)


def _active(fold: MapFold) -> tuple[Group, ...]:
    """The groups that do something: a dial of 0 needs no columns."""
    return tuple(group for group in fold.groups if group.weight != 0)


def _parts(base: ModelFolder, fold: MapFold) -> list[MapFold]:
    """A fold of experts as one of those that are stacked, and one of the shared ones, which are a map by themselves."""
    slot = fold.slot
    if slot.kind != "experts" or _shared_experts(base, slot) is None:
        return [fold]
    *routed, shared = slot.weights
    return [
        replace(fold, slot=replace(slot, weights=tuple(routed))),
        replace(fold, slot=replace(slot, kind="map", weights=(shared,))),
    ]


def _shared_experts(base: ModelFolder, slot: Slot) -> str | None:
    """Path of the shared experts' map below the layer, at a site that has such."""
    if slot.site.layer is None:
        return None
    return base.architecture.linear_site(slot.site.kind, slot.site.layer).shared_experts


def _adapted_module(base: ModelFolder, folds: tuple[MapFold, ...]) -> AdaptedModule:
    slot = folds[0].slot
    path, parameter = base.architecture.module_path(slot.site), None
    if slot.kind == "map" and (shared := _shared_experts(base, slot)) is not None:
        assert slot.site.layer is not None
        path, parameter = f"{base.architecture.layer_path(slot.site.layer)}.{shared}", _WEIGHT
    elif slot.site.layer in base.architecture.dense_layers and slot.site.kind in base.architecture.dense_sites:
        parameter = _WEIGHT
    if slot.kind == "experts":
        model_type = base.architecture.model_type
        if model_type not in FUSED_EXPERTS:
            raise BadInputError(
                f"where the experts of {model_type} lie in a live model is not described, so no adapter can name "
                "them: use --as checkpoint"
            )
        fused = FUSED_EXPERTS[model_type]
        path, parameter = f"{path}.{fused.module}", fused.parameter
    shape: tuple[Any, ...] = base.tensors.entry(slot.weight).shape
    d_out, d_in = shape if slot.layout == "out_in" else shape[::-1]
    return AdaptedModule(path, parameter, folds, d_out, d_in)
