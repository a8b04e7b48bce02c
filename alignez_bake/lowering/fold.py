"""Folding: the edited tensors of linear maps, in float64, rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.low_rank import low_rank
from alignez_bake.safetensors_io.dtypes import cast_once, is_plain_float, numpy_dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.low_rank import LowRankChange
    from alignez_bake.lowering.decide import MapFold
    from alignez_bake.lowering.slot import TensorSource
    from alignez_bake.site import Site

    Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class FoldedTensor:
    """One edited tensor before it is rounded.

    Attributes:
        name: its key in the files.
        base: the stored values, as float64, in the stored layout.
        exact: the formula's values, float64, in the stored layout.
    """

    name: str
    base: Float64Array
    exact: Float64Array

    def rounded(self, dtype: str) -> NDArray[Any]:
        """The exact values rounded once, to nearest, to a file dtype such as "BF16".

        Raises:
            BadInputError: a value overflows the dtype.
        """
        stored = cast_once(self.exact, numpy_dtype_of(dtype))
        if not np.isfinite(stored.astype(np.float64)).all():
            largest = float(np.abs(self.exact).max())
            wider = "" if dtype in ("F32", "F64") else ", or --dtype float32"
            raise BadInputError(
                f"the edit overflows {dtype} in {self.name}: its largest value would be {largest:.3g}; "
                f"use a smaller strength{wider}"
            )
        return stored


class Write(NamedTuple):
    """New values for a part of a tensor, in the stored layout: what a hidden unit puts into its rows and columns."""

    part: tuple[slice, ...]
    values: Float64Array


class EditedTensors:
    """The tensors that edits change, computed one at a time when they are asked for.

    A fused tensor (phi3's gate_up_proj) can hold several sites, so the folds are grouped by weight. With
    (B, A, Δb) of `low_rank`, the site's part of the weight becomes

    - of a map: W' = W + B A, and b' = b + Δb;
    - of experts, whose sum y = Σ_e p_e (W_e z_e + b_e) + W_s z_s, the router's weights p_e and a shared expert (s), an
      edit y + L Rᵀ y reads: Σ_e p_e (I + L Rᵀ) (W_e z_e + b_e) + (I + L Rᵀ) W_s z_s, whatever the p_e are. So the same
      in every expert, routed or shared, each with an A of its own. A constant L s + c goes to every b_e, which is right
      where Σ_e p_e = 1, and only there do slots of experts have biases. So each b_e' = b_e + Δb_e, with the Δb_e that
      `low_rank` gives for b_e; it does not depend on W_e;
    - of an embedding, the map e = W 1_t of one-hot vectors with W = Eᵀ: W' = W + B A + Δb 1ᵀ, since the entries of a
      one-hot vector sum to one, so that a constant needs no bias.
    """

    def __init__(
        self, folds: Sequence[MapFold], source: TensorSource, writes: Mapping[str, Sequence[Write]] | None = None
    ) -> None:
        """Group the folds by tensor; nothing is read yet.

        Args:
            folds: of `Lowering.folds`.
            source: the tensors that they change.
            writes: parts of tensors that are set after the folds; there the folds leave zeros.
        """
        self._source = source
        self._folds: dict[str, list[MapFold]] = {}
        self._writes = dict(writes or {})
        for fold in folds:
            for name in fold.slot.weights:
                self._folds.setdefault(name, []).append(fold)
            if fold.slot.bias is not None:
                self._folds.setdefault(fold.slot.bias, []).append(fold)
        # Weight and bias of a map come from one change; (B, A, Δb) is small beside W.
        self._changes: dict[Site, LowRankChange] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the tensors that can change, in order of the edits."""
        return tuple(dict.fromkeys((*self._folds, *self._writes)))

    def __contains__(self, name: object) -> bool:
        """Whether the tensor can change."""
        return name in self._folds or name in self._writes

    def compute(self, name: str) -> FoldedTensor:
        """One edited tensor in float64.

        Raises:
            BadInputError: a weight that is not finite or not of a plain float dtype, edits that do not fit, or a
                constant that has no bias to live in.
        """
        base = _read_float64(self._source, name)
        exact = base.copy()
        for fold in self._folds.get(name, ()):
            with np.errstate(over="ignore", invalid="ignore"):  # `rounded` refuses what is not finite
                self._apply(fold, name, base, exact)
        for write in self._writes.get(name, ()):
            exact[write.part] = write.values
        return FoldedTensor(name, base, exact)

    def _apply(self, fold: MapFold, name: str, base: Float64Array, exact: Float64Array) -> None:
        """Add a fold's part of a tensor to `exact`, in place."""
        slot = fold.slot
        if slot.kind == "map" and name == slot.bias:
            exact[slot.rows] += self._map_change(fold, None).delta_bias
        elif slot.kind == "map":
            change = self._map_change(fold, base)
            slot.weight_rows(exact)[...] += change.b_matrix @ change.a_matrix
        elif name == slot.bias:
            no_weight = np.zeros((slot.d_out, 0))
            for of_expert, edited in zip(base, exact, strict=True):
                edited[...] += low_rank(fold.groups, no_weight, of_expert).delta_bias
        else:
            matrices = (_matrices(slot.weight_rows(values)) for values in (base, exact))
            for weight, edited in zip(*matrices, strict=True):
                change = self._change(fold, weight, None)
                edited[...] += change.b_matrix @ change.a_matrix
                if slot.kind == "embedding":
                    edited[...] += change.delta_bias[:, np.newaxis]

    def _map_change(self, fold: MapFold, weight: Float64Array | None) -> LowRankChange:
        slot = fold.slot
        if slot.site not in self._changes:
            weight = _read_float64(self._source, slot.weight) if weight is None else weight
            bias = None if slot.bias is None else _read_float64(self._source, slot.bias)[slot.rows]
            self._changes[slot.site] = self._change(fold, slot.weight_rows(weight), bias)
        return self._changes[slot.site]

    def _change(self, fold: MapFold, weight: Float64Array, bias: Float64Array | None) -> LowRankChange:
        slot = fold.slot
        change = low_rank(fold.groups, weight, bias)
        if slot.bias is None and slot.kind != "embedding" and change.needs_bias:
            raise BadInputError(f"edits at {slot.site} have a constant, but {slot.weight} has no bias to hold it")
        return change


def _matrices(weights: Float64Array) -> Float64Array:
    """[d_out, d_in] or [experts, d_out, d_in] -> [experts, d_out, d_in], a view."""
    return weights if weights.ndim == 3 else weights[np.newaxis]


def _read_float64(source: TensorSource, name: str) -> Float64Array:
    dtype = source.entry(name).dtype
    if not is_plain_float(dtype):
        raise BadInputError(f"{name} has dtype {dtype}: edits fold into F64, F32, F16 or BF16 only")
    values = source.read(name).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadInputError(f"{name} holds values that are not finite: the base is damaged")
    return values


@dataclass(frozen=True)
class Delivery:
    """How much of an edit survives rounding in one tensor.

    Attributes:
        name: the tensor.
        share: <W'_stored - W, ΔW> / ‖ΔW‖², 1 if rounding lost nothing; None if the formula changes nothing.
        residual: ‖W'_stored - W'‖ / ‖ΔW‖, rounding noise over edit; None likewise.
        relative_change: ‖ΔW‖ / ‖W‖; None where W is zero, such as a bias that never learnt.
    """

    name: str
    share: float | None
    residual: float | None
    relative_change: float | None


def delivery(tensor: FoldedTensor, stored: NDArray[Any]) -> Delivery:
    """Compare what was stored with what the formula asks for; `stored` has the shape of `tensor.exact`."""
    asked = tensor.exact - tensor.base
    largest = float(np.abs(asked).max(initial=0.0))
    if largest == 0.0:
        return Delivery(tensor.name, None, None, 0.0 if tensor.base.any() else None)
    # In units of the largest change, so that no square overflows or vanishes.
    values, unit = stored.astype(np.float64), asked / largest
    norm = float(np.linalg.norm(unit))
    base_norm = float(np.linalg.norm(tensor.base / largest))
    return Delivery(
        tensor.name,
        share=float(np.vdot((values - tensor.base) / largest, unit)) / norm**2,
        residual=float(np.linalg.norm((values - tensor.exact) / largest)) / norm,
        relative_change=norm / base_norm if base_norm > 0 else None,
    )
