"""The record from which everything derives, and its one function.

Every edit that this tool knows changes the output y of one place of the model:

    y  <-  y + strength · ( L · g(Rᵀ r + s) + c )          at the chosen token positions

With row vectors, as they lie in memory (y: [..., d_out], r: [..., d_r]), this is

    y  <-  y + strength · ( g(r R + s) Lᵀ + c )

`formula.edit_delta` computes the added term, on numpy arrays (fold, streaming) and on torch tensors (hooks,
modules) alike. This module does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.formula import edit_delta
from alignez_bake.immutable_arrays import immutable
from alignez_bake.site import LEGAL_READS, Reads, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    FloatArray = NDArray[np.floating[Any]]

__all__ = ["GATE_NAMES", "POSITIONS", "Array", "Edit", "EditTensors", "Gate", "Positions", "compose", "edit_delta"]

Gate = Literal["identity", "relu", "tanh"]
Positions = Literal["all", "last"]
# A numpy array or a torch tensor; Any keeps torch out of the data layer.
Array = TypeVar("Array", bound=Any)

GATE_NAMES: Final[tuple[Gate, ...]] = get_args(Gate)
POSITIONS: Final[tuple[Positions, ...]] = get_args(Positions)


class EditTensors(NamedTuple):
    """The four arrays of an edit in one array kind, dtype and device; absent ones are None."""

    left: Any
    right: Any
    offset: Any
    bias: Any


@dataclass(frozen=True, eq=False)
class Edit:
    """One low-rank edit of the output of one site.

    Attributes:
        site: whose output is edited.
        left: L [d_out, k], float32 or float64; columns sorted by contribution, so a lower rank is a slice.
        right: R [d_r, k].
        offset: s [k], or None.
        bias: c [d_out], or None. A pure shift has a bias alone.
        reads: `output`: r = y; `input`: r = z where y = W z + b; `block`: r = what enters the attention or
            MLP module, after its norm.
        gate: g, linear (`identity`) or not.
        positions: `all` tokens, or the `last` row of each forward call.
        strength: multiplies L and c; finite.
        objective: optional name, by which dials multiply the strength at bake time.
    """

    site: Site
    left: FloatArray | None = None
    right: FloatArray | None = None
    offset: FloatArray | None = None
    bias: FloatArray | None = None
    reads: Reads = "output"
    gate: Gate = "identity"
    positions: Positions = "all"
    strength: float = 1.0
    objective: str | None = None

    def __post_init__(self) -> None:
        """Check values, shapes and finiteness; make the arrays immutable.

        Raises:
            BadInputError: the message names the site, the value and the bound.
        """
        place = f"edit at {self.site}"
        if self.reads not in LEGAL_READS[self.site.kind]:
            legal = " or ".join(LEGAL_READS[self.site.kind])
            raise BadInputError(f"{place} reads {self.reads!r}, but site {self.site.kind!r} can read {legal} only")
        for value, legal_values, what in (
            (self.gate, GATE_NAMES, "gate"),
            (self.positions, POSITIONS, "positions"),
        ):
            if value not in legal_values:
                raise BadInputError(f"{place} has {what} {value!r}: use one of {', '.join(legal_values)}")
        if isinstance(self.strength, bool) or not isinstance(self.strength, int | float):
            raise BadInputError(f"{place} has strength {self.strength!r}: it must be a number")
        if not is_finite_number(self.strength):
            raise BadInputError(f"{place} has strength {self.strength!s:.40}: it must be finite, as a float is")
        object.__setattr__(self, "strength", float(self.strength))
        if self.objective is not None and (not isinstance(self.objective, str) or not self.objective):
            raise BadInputError(f"{place} has objective {self.objective!r}: it must be a non-empty string")
        for name, dimensions in (("left", 2), ("right", 2), ("offset", 1), ("bias", 1)):
            object.__setattr__(self, name, _checked_array(getattr(self, name), f"{place}: {name}", dimensions))
        self._check_shapes(place)

    def _check_shapes(self, place: str) -> None:
        if (self.left is None) != (self.right is None):
            raise BadInputError(f"{place} has only one of left and right: give both, or neither for a pure shift")
        if self.left is None or self.right is None:
            if self.bias is None:
                raise BadInputError(f"{place} has neither left and right nor a bias: it would do nothing")
            if self.offset is not None:
                raise BadInputError(f"{place} has an offset but no left and right for it")
            if self.reads != "output" or self.gate != "identity":
                raise BadInputError(f"{place} is a pure shift: it reads 'output' with gate 'identity'")
            return
        rank = self.left.shape[1]
        if rank == 0:
            raise BadInputError(f"{place} has rank 0: it needs at least one column")
        if self.right.shape[1] != rank:
            raise BadInputError(f"{place}: left has rank {rank}, right has rank {self.right.shape[1]}")
        if self.offset is not None and self.offset.shape != (rank,):
            raise BadInputError(f"{place}: offset has shape {self.offset.shape}, expected ({rank},)")
        if self.bias is not None and self.bias.shape != (self.left.shape[0],):
            raise BadInputError(f"{place}: bias has shape {self.bias.shape}, expected ({self.left.shape[0]},)")
        if self.reads == "output" and self.right.shape[0] != self.left.shape[0]:
            raise BadInputError(
                f"{place} reads the output, so left [{self.left.shape[0]}, k] and right "
                f"[{self.right.shape[0]}, k] must have the same first dimension"
            )

    @property
    def d_out(self) -> int:
        """Width of the site's output."""
        array = self.left if self.left is not None else self.bias
        assert array is not None
        return int(array.shape[0])

    @property
    def d_read(self) -> int | None:
        """Width of what the edit reads; None for a pure shift."""
        return None if self.right is None else int(self.right.shape[0])

    @property
    def rank(self) -> int:
        """k, 0 for a pure shift."""
        return 0 if self.left is None else int(self.left.shape[1])

    @property
    def is_linear(self) -> bool:
        """Whether the edit is an affine map at every position, which is what can fold."""
        return self.gate == "identity" and self.positions == "all"

    @property
    def has_constant(self) -> bool:
        """Whether a linear edit adds the same vector everywhere, strength · (L s + c): that needs a bias."""
        constant = 0.0 if self.bias is None else self.strength * self.bias.astype(np.float64)
        if self.left is not None and self.offset is not None:
            # As `low_rank` does it: where L s cancels but for rounding, both must see the same rest.
            constant = constant + (self.strength * self.left.astype(np.float64)) @ self.offset.astype(np.float64)
        return bool(np.any(constant))

    @property
    def name(self) -> str:
        """Short form for tables and messages."""
        objective = f" ({self.objective})" if self.objective else ""
        return f"{self.site}{objective}"

    def tensors(self, convert: Callable[[FloatArray], Any]) -> EditTensors:
        """The arrays as `convert` makes them, for `edit_delta`: a dtype, a torch tensor, a device."""
        return EditTensors(
            *(None if array is None else convert(array) for array in (self.left, self.right, self.offset, self.bias))
        )

    def scaled(self, factor: float) -> Edit:
        """The same edit with its strength multiplied by `factor`."""
        return replace(self, strength=self.strength * factor)

    def truncated(self, rank: int) -> Edit:
        """The first `rank` columns: the best lower rank, because columns are sorted by contribution.

        Raises:
            BadInputError: `rank` is below 1 or above the edit's own.
        """
        if not 1 <= rank <= self.rank:
            raise BadInputError(f"edit at {self.site} has rank {self.rank}: rank {rank} is not within 1..{self.rank}")
        assert self.left is not None
        assert self.right is not None
        return replace(
            self,
            left=self.left[:, :rank],
            right=self.right[:, :rank],
            offset=None if self.offset is None else self.offset[:rank],
        )

    def equals(self, other: Edit) -> bool:
        """Whether both records hold the same values, bit for bit and dtype for dtype."""
        plain = ("site", "reads", "gate", "positions", "strength", "objective")
        if any(getattr(self, name) != getattr(other, name) for name in plain):
            return False
        for name in ("left", "right", "offset", "bias"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if (mine is None) != (theirs is None):
                return False
            if mine is not None and (
                mine.dtype != theirs.dtype or mine.shape != theirs.shape or mine.tobytes() != theirs.tobytes()
            ):
                return False
        return True


def is_finite_number(value: float) -> bool:
    """Whether a number is finite, and a whole one within the range of floats."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _checked_array(value: object, what: str, dimensions: int) -> FloatArray | None:
    """`value` as an immutable, contiguous float32 or float64 array, refused if it is not finite.

    What is immutable already, as arrays of other edits and of mapped files are, is kept: an edit of another strength
    shares them, and a plan takes no memory beyond its file.
    """
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype not in (np.float32, np.float64):
        raise BadInputError(f"{what} has dtype {array.dtype}: use float32 or float64")
    if array.ndim != dimensions:
        raise BadInputError(f"{what} has shape {array.shape}: it needs {dimensions} dimension(s)")
    # Both ends are finite exactly if all values are, NaN among them; unlike a mask, they take no memory.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise BadInputError(f"{what} holds values that are not finite")
    return immutable(array)


def compose(edits: Sequence[Edit]) -> Edit:
    """One edit that equals applying linear edits which read the output of one site, in order.

    With strengths multiplied into L and c, the first edit gives y1 = y + L1 (R1ᵀ y + s1) + c1, and the second

        y2 = y1 + L2 (R2ᵀ y1 + s2) + c2
           = y  + L1 (R1ᵀ y + s1) + c1
                + L2 ( (R2ᵀ + R2ᵀ L1 R1ᵀ) y + R2ᵀ (L1 s1 + c1) + s2 ) + c2

    so L = [L1, L2], R = [R1, R2 + R1 L1ᵀ R2], s = [s1, s2 + R2ᵀ (L1 s1 + c1)], c = c1 + c2. Applied from
    left to right this composes any number. The columns are no longer sorted by contribution.

    Returns:
        The composed edit in float64, of strength 1, with the objective that all share, or none.

    Raises:
        BadInputError: no edits, different sites or widths, or an edit that is not linear in the output.
    """
    if not edits:
        raise BadInputError("there are no edits to compose")
    first = edits[0]
    for edit in edits:
        if edit.site != first.site or edit.d_out != first.d_out:
            raise BadInputError(f"edits at {first.site} and {edit.site} cannot be composed: one site, one width")
        if not edit.is_linear or edit.reads != "output":
            raise BadInputError(f"edit at {edit.site} cannot be composed: only linear edits that read the output can")
    width = first.d_out
    left, right, offset = np.zeros((width, 0)), np.zeros((width, 0)), np.zeros(0)
    bias = np.zeros(width)
    for edit in edits:
        if edit.left is not None and edit.right is not None:
            next_left = edit.strength * edit.left.astype(np.float64)
            next_right = edit.right.astype(np.float64)
            own_offset = np.zeros(edit.rank) if edit.offset is None else edit.offset.astype(np.float64)
            moved_offset = own_offset + next_right.T @ (left @ offset + bias)
            right = np.hstack([right, next_right + right @ (left.T @ next_right)])
            left, offset = np.hstack([left, next_left]), np.concatenate([offset, moved_offset])
        if edit.bias is not None:
            bias = bias + edit.strength * edit.bias
    objectives = {edit.objective for edit in edits}
    has_maps = left.shape[1] > 0
    has_bias = bool(bias.any()) or not has_maps
    return Edit(
        site=first.site,
        left=left if has_maps else None,
        right=right if has_maps else None,
        offset=offset if has_maps and offset.any() else None,
        bias=bias if has_bias else None,
        objective=objectives.pop() if len(objectives) == 1 else None,
    )
