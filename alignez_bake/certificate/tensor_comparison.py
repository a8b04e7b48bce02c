"""Result and expectation, tensor by tensor and block by block: in float64, side by side, with little memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.lowering.delivery import Delivery, DeliverySums, delivery_sums
from alignez_bake.lowering.matrix_change import row_blocks
from alignez_bake.lowering.rounding import arithmetic_tolerance, is_neighbour, round_rows
from alignez_bake.safetensors_io.dtypes import BY_NAME, cast_once, is_plain_float, numpy_dtype_of
from alignez_bake.streaming.crew import Crew
from alignez_bake.streaming.edited_tensor import arithmetic_dtype
from alignez_bake.streaming.prepared_matrix import PreparedMatrix
from alignez_bake.streaming.rounding_choice import RoundedMatrix
from alignez_bake.thread_limits import one_blas_thread, worker_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from alignez_bake.exporters.checkpoint_contents import CheckpointContents
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Advance
    from alignez_bake.streaming.rounding_choice import AskedRounding

# Another order of summation moves an exact value by some 1e-16 of its terms: enough to round the other way only
# where it lies this close to the middle between two stored values, in units of their distance.
_TIE_WIDTH: Final = 1e-4
_FP64_TOLERANCE: Final = 1e-12
_COSTS_APART: Final = 256
_BYTES: Final = 4 * 1024 * 1024


@dataclass
class Compared:
    """What was found.

    Attributes:
        reasons: one line each for tensors that are not what they must be.
        differing: tensors without an edit that are not the base's.
        deliveries: of the edited tensors.
    """

    reasons: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)


class _Finding(NamedTuple):
    """Of one block: how many values are wrong, or bytes differ; and how much of an edit it holds."""

    wrong: int
    sums: DeliverySums | None = None


_Job = tuple[str | None, "Callable[[], _Finding | None]"]


def compare_tensors(
    contents: CheckpointContents,
    result: ModelFolder,
    names: Sequence[str],
    rounding: AskedRounding,
    advance: Advance,
) -> Compared:
    """Compare tensors of a result with what they must be.

    Args:
        contents: what the result must hold.
        result: what it holds.
        names: tensors that both have.
        rounding: the rule of edited values.
        advance: counts them.

    Raises:
        BadInputError: a file that changed, or a base that is damaged.
    """
    found = Compared()
    wrong: dict[str, int] = {}
    sums: dict[str, DeliverySums] = {}
    same_shape = []
    for name in names:
        shape = _expected_shape(contents, name)
        if shape == result.tensors.entry(name).shape:
            same_shape.append(name)
        else:
            found.reasons.append(f"{name} has shape {list(result.tensors.entry(name).shape)}, not {list(shape)}")
    advance(len(names) - len(same_shape))
    workers = worker_count()

    def take(name: str, finding: _Finding | None) -> None:
        assert finding is not None  # only what prepares a matrix gives nothing, and has no name
        if name not in wrong:
            advance()
        wrong[name] = wrong.get(name, 0) + finding.wrong
        if finding.sums is not None:
            sums[name] = sums.get(name, DeliverySums()) + finding.sums

    with one_blas_thread():
        Crew[str, "_Finding | None"](workers, ahead=4 * workers).run(
            _jobs(contents, result, same_shape, rounding), take
        )
    for name in same_shape:
        if name in contents.edited:
            found.deliveries.append(sums.get(name, DeliverySums()).delivery(name))
        if count := wrong.get(name, 0):
            _note_wrong(found, contents, name, count)
    return found


def _note_wrong(found: Compared, contents: CheckpointContents, name: str, count: int) -> None:
    """Say what is wrong with a tensor."""
    if contents.is_copied(name):
        found.differing.append(name)
    elif name in contents.added:
        found.reasons.append(f"{name}, a parameter of an inserted module, is not the edit's")
    elif name in contents.edited:
        size = math.prod(_expected_shape(contents, name))
        found.reasons.append(f"{name}: {count} of {size} values are not the formula's")
    else:
        found.reasons.append(f"{name}, which makes room for edits and has none of its own, is not as it must be")


def _expected_shape(contents: CheckpointContents, name: str) -> tuple[int, ...]:
    added = contents.added.get(name)
    return contents.home.tensors.entry(name).shape if added is None else added.shape


def _jobs(
    contents: CheckpointContents, result: ModelFolder, names: Sequence[str], rounding: AskedRounding
) -> Iterator[_Job]:
    for name in names:
        if name in contents.edited:
            yield from _edited(contents, result, name, rounding)
        elif contents.is_copied(name):
            yield from _copied(contents.base, result, name)
        else:
            yield name, lambda name=name: _made(contents, result, name)  # type: ignore[misc]


def _edited(contents: CheckpointContents, result: ModelFolder, name: str, rounding: AskedRounding) -> Iterator[_Job]:
    count, rows, columns = contents.edited.matrices(name)
    stored_as = result.tensors.entry(name).dtype
    if not is_plain_float(stored_as):
        yield name, lambda: _Finding(math.prod(result.tensors.entry(name).shape))
        return
    bounded = arithmetic_dtype(contents.edited.base_dtype(name), stored_as) is np.float32
    for index in range(count):
        prepared = PreparedMatrix(contents.edited, name, index, np.float64, bounded=bounded)
        matrix = _EditedMatrix(contents, result, prepared, RoundedMatrix(prepared, rounding, stored_as))
        yield None, matrix.rounded.prepare
        for first, end in row_blocks(rows, columns):
            yield name, lambda matrix=matrix, first=first, end=end: matrix.compare(first, end)  # type: ignore[misc]


@dataclass(frozen=True)
class _EditedMatrix:
    """One matrix of an edited tensor beside what must be in it."""

    contents: CheckpointContents
    result: ModelFolder
    prepared: PreparedMatrix
    rounded: RoundedMatrix

    def compare(self, first: int, end: int) -> _Finding:
        change, name = self.prepared.change, self.prepared.name
        _, base = self.prepared.rows(first, end)
        offset = change.index * change.rows
        stored = self.result.tensors.read_rows(name, offset + first, offset + end)
        delta = change.delta(base, first)
        return _Finding(self._wrong(base, delta, first, stored), delivery_sums(base, delta, stored))

    def _wrong(self, base: NDArray[np.float64], delta: NDArray[np.float64], first: int, stored: NDArray[Any]) -> int:
        """How many values are not the formula's, see `values_off_formula` and `values_not_carried`.

        Where base and result have 16 bits they were computed in float32, Rᵀ W included, and so may be the further
        neighbour where the formula lies as close to the middle as float32 can be off.
        """
        change, exact = self.prepared.change, base + delta
        if self.rounded.rounding == "nearest" and not (wrong := values_off_formula(exact, stored)):
            return wrong
        old, new = self.contents.edited.base_dtype(change.name), self.result.tensors.entry(change.name).dtype
        slack = None
        if arithmetic_dtype(old, new) is np.float32:
            slack = arithmetic_tolerance(change.magnitude(base, first), change.terms, np.dtype(np.float32))
            slack += change.projection_error(base.shape, first)
        if self.rounded.rounding == "carry":
            return values_not_carried(exact, delta, stored, 0.0 if slack is None else slack)
        return values_off_formula(exact, stored, slack)


def values_not_carried(
    exact: NDArray[np.float64], delta: NDArray[np.float64], stored: NDArray[Any], slack: NDArray[np.float64] | float
) -> int:
    """How many stored values are not the formula's, rounded so that errors are carried along ΔW.

    Which values are turned to their other neighbour follows from costs that are compared with eight significant bits.
    Other arithmetic may put a cost on the other side of the last step: one value in 256 may differ, and each of them
    must be a neighbour of the exact value. Where more differ, all of them count as wrong.

    Args:
        exact: the formula's values.
        delta: ΔW, likewise.
        stored: what was found.
        slack: how far the exact values may be off.
    """
    expected = round_rows(exact, stored.dtype, change=delta)
    differing = expected.astype(np.float64) != stored.astype(np.float64)
    if np.count_nonzero(differing) * _COSTS_APART > stored.size:
        return int(np.count_nonzero(differing))
    return int(np.count_nonzero(differing & ~is_neighbour(exact, stored, slack)))


def values_off_formula(
    exact: NDArray[np.float64], stored: NDArray[Any], slack: NDArray[np.float64] | None = None
) -> int:
    """How many stored values are not the formula's, rounded to nearest.

    Each must be the exact value rounded to nearest. The one exception is a value whose exact counterpart lies in
    the middle between two neighbours but for the noise of fp64 summation: there either neighbour is right. Values
    stored in fp64 are compared with 1e-12 of the largest.

    Where values were computed in another arithmetic, which is off by some slack t, the rounded value of any x within t
    of the exact one is right; rounding is monotonic, so these are the values from that of exact - t to that of
    exact + t. Nearly always that is one value, or two where the middle between them is as close as t.

    Args:
        exact: the formula's values.
        stored: what was found, of the same shape.
        slack: t for each value, where that is more than the noise of float64.
    """
    if stored.dtype == np.float64:
        bound = _FP64_TOLERANCE * max(float(np.abs(exact).max(initial=0.0)), np.finfo(np.float64).tiny)
        return int(np.count_nonzero(~(np.abs(stored - exact) <= bound)))
    nearest = cast_once(exact, stored.dtype)
    unsigned = f"u{stored.dtype.itemsize}"
    off = np.ascontiguousarray(stored).view(unsigned) != np.ascontiguousarray(nearest).view(unsigned)
    if not off.any():
        return 0
    formula, found = exact[off], stored[off].astype(np.float64)
    if slack is not None:
        low, high = (cast_once(formula + sign * slack[off], stored.dtype).astype(np.float64) for sign in (-1, 1))
        return int(np.count_nonzero(~((low <= found) & (found <= high) & np.isfinite(found))))
    expected = nearest[off].astype(np.float64)
    middle = (found + expected) / 2
    is_tie = np.abs(formula - middle) <= _TIE_WIDTH * np.abs(found - expected)
    # Zero and minus zero are one value; a neighbour's neighbour is never a tie.
    return int(np.count_nonzero(~((found == expected) | (is_tie & np.isfinite(found)))))


def _copied(base: ModelFolder, result: ModelFolder, name: str) -> Iterator[_Job]:
    """Byte for byte in the same dtype; value for value of one rounding where the dtype was changed."""
    old, new = base.tensors.entry(name), result.tensors.entry(name)
    if old.dtype != new.dtype and not (is_plain_float(old.dtype) and is_plain_float(new.dtype)):
        yield name, lambda: _Finding(1)
        return
    values = old.nbytes * 8 // BY_NAME[old.dtype].bits
    step = max(1, _BYTES * 8 // BY_NAME[old.dtype].bits // 8 * 8)  # whole bytes, also of values below one
    for first in range(0, max(values, 1), step):

        def compared(first: int = first, end: int = min(first + step, values)) -> _Finding:
            mine, theirs = (
                np.frombuffer(
                    folder.tensors.read_bytes_range(
                        name, first * BY_NAME[entry.dtype].bits // 8, end * BY_NAME[entry.dtype].bits // 8
                    ),
                    np.uint8,
                )
                for folder, entry in ((base, old), (result, new))
            )
            if old.dtype != new.dtype:
                rounded = cast_once(mine.view(numpy_dtype_of(old.dtype)), numpy_dtype_of(new.dtype))
                mine = rounded.view(np.uint8)
            return _Finding(int(not np.array_equal(mine, theirs)))

        yield name, compared


def _made(contents: CheckpointContents, result: ModelFolder, name: str) -> _Finding:
    """What the base lacks: an inserted module's parameter, or room for edits."""
    stored, added = result.tensors.read(name), contents.added.get(name)
    if added is not None:
        return _Finding(int(stored.dtype != added.dtype or stored.tobytes() != added.tobytes()))
    expected = cast_once(contents.home.tensors.read(name), stored.dtype)
    return _Finding(int(expected.tobytes() != stored.tobytes()))
