"""Edits as hidden units of an MLP: the rows, biases and columns that carry them with no code at all.

An MLP computes y = W_w (f(W_r x + b_r)) + b_w, or, gated, y = W_w (f(W_r x + b_r) ⊙ (W_f x + b_f)) + b_w, where x is
what enters the block. A unit more adds

    w · f(rᵀx + b) · u            with u = 1 in a plain MLP, u = b_f in a gated one (its row of W_f is zero)

to y: a rank-one term of an edit that reads `block`. With t = R_iᵀ x + s_i and l = strength · dial · L_i,
the column i of

- an identity edit is l t = l f(t) - l f(-t): two units, exact (`activations.py` derives this and what follows);
- a relu edit is l relu(t) = l f(βt)/β within ‖l‖ ε/β: one unit, exact for f = relu;
- a tanh edit is l tanh(t) = l start + Σ_j l a_j relu(t - k_j) within ‖l‖ error: two units for each linear piece.

A gated MLP takes 1/β as its factor, so that the column l keeps its size, which matters to formats with a common scale
for a block; in a plain one it goes into the column. The constants c and l · start belong into the writer's bias.

Several edits at one site add up. An entry's effect depends on what it reads, and x is the same before and after the
other entries, since these change y alone: E_o(y) - y = Σ_e δ_e(x), and y' = y + Σ_o w_o Σ_e δ_e(x), whatever the order.
That is why all edits of the site must read `block`, but for shifts, which read nothing.

All of this is in exact arithmetic. In 16 bits each hidden value is rounded, relatively by 2⁻⁹ (BF16) or 2⁻¹² (F16): so
is t in a hooked model. Only tanh suffers, whose pieces cancel each other for large |t| and leave an error that grows
with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.lowering.decide import Refusal
from alignez_bake.lowering.fold import Write
from alignez_bake.rehome.activations import RELU_ERRORS, RELU_SCALES, TANH_PIECES, piecewise_tanh
from alignez_bake.rehome.growth import mlp_tensor, unit_axis
from alignez_bake.rehome.places import places_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import Group
    from alignez_bake.model_folder import ModelFolder

    Float64Array = NDArray[np.float64]

_EXACT_IDENTITY: Final = "exact: f(t) - f(-t) = t"
_EXACT_RELU: Final = "exact: relu units"


@dataclass(frozen=True, eq=False)
class UnitValues:
    """The added hidden units of one MLP, in float64.

    Attributes:
        rows: [n, d], of the map whose output enters the activation.
        row_biases: [n], its biases.
        factors: [n], biases of the map that multiplies; None in a plain MLP.
        columns: [d_out, n], of the writer.
        constant: [d_out], what must be added to the writer's bias.
        exactness: how close the units come to the edits, for people.
        bound: largest ‖units - edits‖ at any position, in exact arithmetic; 0 where they are the same.
    """

    rows: Float64Array
    row_biases: Float64Array
    factors: Float64Array | None
    columns: Float64Array
    constant: Float64Array
    exactness: str
    bound: float

    @property
    def count(self) -> int:
        """How many units."""
        return len(self.rows)

    @property
    def needs_bias(self) -> bool:
        """Whether the edits add a constant, which the writer's bias must hold."""
        return bool(self.constant.any())


class _Units(NamedTuple):
    """Units of one edit: f(scale · (rows x + biases)) / scale times the columns, and a constant [d_out]."""

    rows: Float64Array
    biases: Float64Array
    columns: Float64Array
    scale: float
    constant: Float64Array
    bound: float
    exactness: str


def unit_values(
    model: ModelFolder, groups: Sequence[Group], *, dtype: str, approximate: bool = False
) -> UnitValues | Refusal:
    """The hidden units that carry the edits of one `mlp_write` site.

    Args:
        model: the base or its equivalent: its activation and whether its MLP is gated count.
        groups: the site's edits with their dials, of `EditPlan.groups_at`; at least one edit.
        dtype: the file dtype that the weights will have: F64, F32, BF16 or F16.
        approximate: whether a tanh may be made of linear pieces. A relu through a smooth activation needs no leave:
            but in F16 its error is below what the dtype's rounding makes of values near 1.

    Returns:
        The values, of no unit if all edits are shifts; or why units cannot carry these edits.
    """
    edits = [(group.weight * edit.strength, edit) for group in groups for edit in group.edits]
    places = places_of(model.architecture.model_type)
    if places is None or places.mlp is None:
        return Refusal(f"no hidden units can be added to the MLP of a {model.architecture.model_type} model")
    activation = places.mlp.activation_of(model.config)
    if (refusal := _refusal(edits, activation, approximate=approximate)) is not None:
        return refusal
    parts = [_units(edit, strength, activation, RELU_SCALES[dtype]) for strength, edit in edits]
    gated = places.mlp.factor is not None
    rows = [part.scale * part.rows for part in parts]
    columns = [part.columns if gated else part.columns / part.scale for part in parts]
    factors = np.concatenate([np.full(len(part.rows), 1.0 / part.scale) for part in parts])
    bound = sum(part.bound for part in parts)
    reasons = dict.fromkeys(part.exactness for part in parts if part.exactness)
    return UnitValues(
        rows=np.concatenate([part for part in rows if len(part)] or rows[:1]),
        row_biases=np.concatenate([part.scale * part.biases for part in parts]),
        factors=factors if gated else None,
        columns=np.hstack(columns),
        constant=np.sum([part.constant for part in parts], axis=0),
        exactness="; ".join(reasons) + (f"; within {bound:.2g} in norm" if bound else ""),
        bound=bound,
    )


def _refusal(edits: Sequence[tuple[float, Edit]], activation: str, *, approximate: bool) -> Refusal | None:
    """Why no unit can be one of these edits."""
    if activation not in RELU_ERRORS:
        return Refusal(
            f"the MLP's activation is {activation!r}; hidden units carry edits for {', '.join(RELU_ERRORS)} only"
        )
    for _, edit in edits:
        if edit.site.kind != "mlp_write":
            return Refusal(f"hidden units belong to the MLP: they cannot carry an edit at {edit.site}")
        if edit.positions != "all":
            return Refusal("hidden units act at all positions, and an edit of the last one needs an inserted module")
        if edit.rank and edit.reads != "block":
            return Refusal(
                f"hidden units read what enters the block, and an edit at {edit.site} reads its {edit.reads}"
            )
        if edit.gate == "tanh" and not approximate:
            return Refusal(
                "a tanh is not exact as hidden units: linear pieces come within "
                f"{piecewise_tanh().error:.2g} of it, if an approximation will do"
            )
    return None


def _units(edit: Edit, strength: float, activation: str, scale: float) -> _Units:
    """The units of one edit; none for a shift."""
    constant = np.zeros(edit.d_out) if edit.bias is None else strength * edit.bias.astype(np.float64)
    if edit.left is None or edit.right is None:
        return _Units(np.zeros((0, edit.d_out)), np.zeros(0), np.zeros((edit.d_out, 0)), 1.0, constant, 0.0, "")
    right, left = edit.right.T.astype(np.float64), strength * edit.left.astype(np.float64)
    offset = np.zeros(edit.rank) if edit.offset is None else edit.offset.astype(np.float64)
    if edit.gate == "identity":
        both = (np.concatenate([right, -right]), np.concatenate([offset, -offset]), np.hstack([left, -left]))
        return _Units(*both, 1.0, constant, 0.0, _EXACT_IDENTITY)
    with np.errstate(over="ignore"):  # writing refuses what the dtype cannot hold
        total = float(np.linalg.norm(left, axis=0).sum())
    error = RELU_ERRORS[activation]
    scale = 1.0 if error == 0.0 else scale
    how = _EXACT_RELU if error == 0.0 else f"relu(t) as {activation}(βt)/β, β = {scale:g}"
    if edit.gate == "relu":
        return _Units(right, offset, left, scale, constant, total * error / scale, how)
    tanh = piecewise_tanh()
    knots, changes = np.array(tanh.knots), np.array(tanh.slope_changes)
    biases = (offset[:, None] - knots[None, :]).reshape(-1)
    columns = (left[:, :, None] * changes[None, None, :]).reshape(edit.d_out, -1)
    bound = total * (tanh.error + float(np.abs(changes).sum()) * error / scale)
    pieces = f"tanh as {2 * TANH_PIECES} linear pieces, {how.removeprefix('exact: ')}"
    constant = constant + tanh.start * left.sum(axis=1)
    return _Units(np.repeat(right, len(knots), axis=0), biases, columns, scale, constant, bound, pieces)


def unit_writes(base: ModelFolder, rehomed: ModelFolder, layer: int, values: UnitValues) -> dict[str, Write]:
    """Where the units' values go in the tensors of a model that has room for them.

    The constant is not among them: it adds to the writer's bias as any shift does.

    Args:
        base: the base: the units behind its own are free.
        rehomed: its equivalent with enough units, of `rehome`.
        layer: the MLP's.
        values: of `unit_values`.

    Returns:
        For each changed tensor the part that is the units'. Rows of the multiplying map stay zero.

    Raises:
        BadInputError: the files lack the MLP's weights.
        ValueError: there are not so many units, or not these biases: the model was re-homed for something else.
    """
    places = places_of(rehomed.architecture.model_type)
    if places is None or places.mlp is None:
        raise ValueError(f"a {rehomed.architecture.model_type} model has no added hidden units")
    mlp = places.mlp
    read, write = (mlp_tensor(rehomed, layer, module, "weight") for module in (mlp.read, mlp.write))
    first = base.tensors.entry(read).shape[unit_axis(mlp, mlp.read)]
    units = slice(first, first + values.count)

    def stored(block: Float64Array, rows: slice, columns: slice) -> Write:
        if mlp.layout == "out_in":
            return Write((rows, columns), block)
        return Write((columns, rows), block.T)

    d_out, width = values.columns.shape[0], values.rows.shape[1]
    writes = {
        read: stored(values.rows, units, slice(0, width)),
        mlp_tensor(rehomed, layer, mlp.read, "bias"): Write((units,), values.row_biases),
        write: stored(values.columns, slice(0, d_out), units),
    }
    if mlp.factor is not None:
        assert values.factors is not None
        writes[mlp_tensor(rehomed, layer, mlp.factor, "bias")] = Write((units,), values.factors)
    for name, (part, _) in writes.items():
        shape = rehomed.tensors.entry(name).shape if name in rehomed.tensors else ()
        if len(shape) != len(part) or any(axis.stop > size for axis, size in zip(part, shape, strict=True)):
            raise ValueError(f"{name} of shape {list(shape)} has no room for units {units.start} to {units.stop - 1}")
    return writes
