"""Where the tensors of a checkpoint lie in a graph that was made of its model.

A parameter that the nodes use as it is keeps its name, behind that of the module around the model. Of one that they
transpose or reshape first, the optimiser makes an initialiser with a name of its own, and notes what it was folded
from. Equal small initialisers become one, under the first one's name. And transformers itself stacks experts that lie
one by one in the files, and renames some maps. So a tensor is looked for

1. under its own name: there it must be;
2. among parameters that no tensor of the files has the name of, with the same layer number: whole, or as a part of a
   stack, at the place in it that its own number says; it must be at one of these places;
3. anywhere else where it could have been merged into.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.onnx_graph.operands import right_operands

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.onnx_graph.initialisers import GraphTensors, Initialiser

WRAPPER: Final = "model."
"""What precedes a parameter's name in our graphs: the attribute of the wrapper module that holds the model."""
LARGEST_MERGED: Final = 1024
"""Values of the largest initialiser that onnxscript's optimiser merges with an equal one."""

_MOST_DIGITS: Final = 9  # Python refuses to read numbers of thousands of digits, which a hostile name can have

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A part of an initialiser that has the shape of a tensor.

    Attributes:
        initialiser: its name.
        transposed: whether its last two axes are swapped.
        index: along the first axis of a stack; None for all of it.
        start: first row (after the swap) of the part that is meant; None for all of them.
        reshaped: whether only the number of values and their order are the tensor's.
    """

    initialiser: str
    transposed: bool = False
    index: int | None = None
    start: int | None = None
    reshaped: bool = False

    def values(self, graph: GraphTensors, shape: _Shape) -> NDArray[Any]:
        """The values as the tensor has them, a view; of `shape`, unless what bears the tensor's name has another."""
        found = graph.read(self.initialiser)
        if self.index is not None:
            found = found[self.index]
        if self.transposed:
            found = found.swapaxes(-1, -2)
        if self.start is not None:
            found = found[self.start : self.start + shape[0]]
        return found.reshape(shape) if self.reshaped else found

    def __str__(self) -> str:
        """For messages: `val_7[3, 64:]ᵀ` is the part from row 64 on of expert 3, transposed."""
        parts = [str(self.index)] if self.index is not None else []
        parts += [f"{self.start}:"] if self.start is not None else []
        part = f"[{', '.join(parts)}]" if parts else ""
        return f"{self.initialiser}{part}{'ᵀ' if self.transposed else ''}"


@dataclass(frozen=True)
class Places:
    """Where one tensor lies.

    Attributes:
        certain: places under its name: it must be at all of them.
        possible: where else it must be, at one of them, if there are any.
        made: what says that the optimiser made something else of it; then it need not be anywhere.
    """

    certain: tuple[Place, ...]
    possible: tuple[Place, ...]
    made: tuple[str, ...]


class TensorPlaces:
    """The places of all tensors of a checkpoint in one graph.

    Attributes:
        unclaimed: initialisers that no tensor has the name of.
    """

    def __init__(
        self, graph: GraphTensors, shapes: Mapping[str, _Shape], prefix: str, others: Mapping[str, Sequence[str]]
    ) -> None:
        """Match names; no values are read.

        Args:
            graph: the graph.
            shapes: of the tensors, by their keys in the files.
            prefix: name of the model without its head below the model, which keys may lack: "model", "transformer".
            others: further names of parameters that are made of a tensor, by key: the head's, of tied embeddings.
        """
        self._graph, self._shapes = graph, shapes
        by_parameter: dict[str, dict[str, Initialiser]] = {}
        for name in graph:
            for parameter in _parameters(graph.entry(name)):
                by_parameter.setdefault(parameter, {})[name] = graph.entry(name)
        self._named: dict[str, dict[str, Initialiser]] = {}
        for key in shapes:
            entries = [by_parameter.get(name, {}) for name in _names(key, prefix, others.get(key, ()))]
            self._named[key] = {name: entry for found in entries for name, entry in found.items()}
        claimed = {name for entries in self._named.values() for name in entries}
        self.unclaimed = tuple(name for name in graph if name not in claimed)
        self._nameless: list[Initialiser] = []
        self._of_layers: dict[tuple[int, ...], list[Initialiser]] = {}
        for entry in map(graph.entry, self.unclaimed):
            layers = {_numbers(parameter) for parameter in _parameters(entry)}
            if entry.dtype is not None:
                for numbers in layers:
                    self._of_layers.setdefault(numbers, []).append(entry)
                self._nameless += [] if layers else [entry]

    @cached_property
    def _right_operands(self) -> frozenset[str]:
        return right_operands(self._graph)

    def of(self, key: str) -> Places:
        """Where a tensor must lie."""
        shape = self._shapes[key]
        certain, possible, made = [], [], []
        for entry in self._named[key].values():
            places = self._whole(entry, shape)
            if entry.dtype is None:
                made.append(f"{entry.name} has data type number {entry.data_type}, whose values no array can hold")
            elif len(entry.folded_from) > 1:
                possible += places
                made.append(f"{entry.name} is folded from it and other values")
            elif places:
                certain += places
            else:
                made.append(f"{entry.name} of shape {list(entry.shape)} is folded from it")
        if not self._named[key]:
            possible += self._unnamed(key)
        return Places(tuple(certain), tuple(possible), tuple(made))

    def merged(self, key: str) -> Iterator[Place]:
        """Where a tensor would be if the optimiser merged it into an equal one; large ones are not merged."""
        shape = self._shapes[key]
        if math.prod(shape) <= LARGEST_MERGED:
            for name in self._graph:
                if self._graph.entry(name).dtype is not None:
                    yield from _alike(self._graph.entry(name), shape)

    def _whole(self, entry: Initialiser, shape: _Shape) -> list[Place]:
        """How an initialiser that bears a tensor's name holds it: one place, or none where it cannot."""
        if not entry.folded_from:
            return [Place(entry.name)]
        # Of what is square the shape does not tell. A map is transposed before a product, and only then does it lie as
        # [in, out]. A stack of experts is taken apart first, and transposed, if at all, afterwards.
        transposed = entry.shape != shape or (len(shape) == 2 and entry.name in self._right_operands)
        if len(shape) > 1 and entry.shape == _swapped(shape) and transposed:
            return [Place(entry.name, transposed=True)]
        same_size = entry.size == math.prod(shape)
        return [Place(entry.name, reshaped=entry.shape != shape)] if same_size else []

    def _unnamed(self, key: str) -> list[Place]:
        """Places below parameters of other names, of the same layer; of large tensors, what has no parameter's name."""
        shape, numbers = self._shapes[key], _numbers(key)
        found: list[Place] = []
        for entry in self._of_layers.get(numbers, ()):
            if sorted(shape) == sorted(entry.shape):
                found += self._whole(entry, shape)
        if numbers:
            for entry in self._of_layers.get(numbers[:-1], ()):
                found += _stacked(entry, shape, numbers[-1])
        if math.prod(shape) > LARGEST_MERGED:
            for entry in self._nameless:
                found += _alike(entry, shape)
        return found


def _alike(entry: Initialiser, shape: _Shape) -> Iterator[Place]:
    """All of an initialiser, as it lies and transposed, where that has the shape."""
    if entry.shape == shape:
        yield Place(entry.name)
    if len(shape) > 1 and entry.shape == _swapped(shape):
        yield Place(entry.name, transposed=True)


def _stacked(entry: Initialiser, shape: _Shape, index: int) -> list[Place]:
    """Parts of one expert of a stack that have the shape of a matrix."""
    if len(shape) != 2 or len(entry.shape) != 3 or index >= entry.shape[0]:
        return []
    found = []
    for transposed, (rows, columns) in ((False, entry.shape[1:]), (True, entry.shape[:0:-1])):
        if columns == shape[1] and shape[0] and rows % shape[0] == 0:
            found += [Place(entry.name, transposed, index, start) for start in range(0, rows, shape[0])]
    return found


def _parameters(entry: Initialiser) -> Iterator[str]:
    """Names of the parameters that an initialiser is or was made of, with and without the wrapper's.

    Paths of parameters have dots; names of other values have none.
    """
    for name in entry.folded_from or (entry.name,):
        if "." in name:
            yield name
            if name.startswith(WRAPPER):
                yield name.removeprefix(WRAPPER)


def _names(key: str, prefix: str, others: Sequence[str]) -> list[str]:
    """Names that the parameter of a key can have: files may lack the prefix, or have it where it is not."""
    below = f"{prefix}."
    return list(dict.fromkeys((key, below + key, key.removeprefix(below), *others) if prefix else (key, *others)))


def _numbers(path: str) -> tuple[int, ...]:
    """Numbers among the names of a path: of layers and experts."""
    parts = path.split(".")
    return tuple(int(part) for part in parts if part.isascii() and part.isdigit() and len(part) <= _MOST_DIGITS)


def _swapped(shape: _Shape) -> _Shape:
    return (*shape[:-2], shape[-1], shape[-2])
