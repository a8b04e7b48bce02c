"""Inputs and outputs of a causal graph with a cache, by the names that optimum gave them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.runtime.value_info import Described

TOKEN_INPUTS: Final = ("input_ids", "attention_mask", "position_ids")
_CACHE: Final = re.compile(r"past_key_values\.\d+\.(key|value)")
_WAY_OUT: Final = "export the model with its cache (optimum: text-generation-with-past)"

CACHE_TYPES: Final[Mapping[str, int]] = MappingProxyType(
    {"tensor(float)": 1, "tensor(float16)": 10, "tensor(double)": 11, "tensor(bfloat16)": 16}
)
"""ONNX Runtime's name of a cache's type, and its number in TensorProto.DataType."""

LOGITS_TYPES: Final = frozenset(CACHE_TYPES)


@dataclass(frozen=True)
class CacheTensor:
    """One key or value of one layer: [batch, heads, length, size], length the only axis that grows.

    Attributes:
        past: name of the input.
        present: name of the output that is the next call's input.
        element_type: number of TensorProto.DataType.
        heads: of keys and values.
        size: of one head.
    """

    past: str
    present: str
    element_type: int
    heads: int
    size: int

    def shape(self, batch: int, length: int) -> list[int]:
        """Its shape when `length` tokens of `batch` rows are in it."""
        return [batch, self.heads, length, self.size]


@dataclass(frozen=True)
class Signature:
    """What the graph takes and gives.

    Attributes:
        tokens: those of `TOKEN_INPUTS` that it has; `input_ids` and at least one of the others.
        cache: in the order of the graph; the outputs after `logits` are in the same.
        vocabulary: length of a row of logits, None where the graph leaves it open.
    """

    tokens: frozenset[str]
    cache: tuple[CacheTensor, ...]
    vocabulary: int | None


def read_signature(inputs: Sequence[Described], outputs: Sequence[Described], place: str) -> Signature:
    """Check inputs and outputs, be it those that a file declares or those that a session has.

    Args:
        inputs: without initialisers.
        outputs: likewise. A file may leave the shape of the logits open; the session's graph then has it.
        place: the model, for messages.

    Raises:
        BadInputError: no cache, names or types that are not known, or a cache that cannot grow.
    """
    given = {argument.name: argument for argument in inputs}
    pasts = [name for name in given if _CACHE.fullmatch(name)]
    unknown = [name for name in given if name not in TOKEN_INPUTS and name not in pasts]
    if unknown:
        raise BadInputError(
            f"{place} takes {_listed(unknown)}, which this runner does not know: it gives "
            f"{', '.join(TOKEN_INPUTS)} and past_key_values.N.key/value; {_WAY_OUT}"
        )
    if not pasts:
        raise BadInputError(f"{place} takes no past_key_values.N.key/value, so it has no cache: {_WAY_OUT}")
    _check_tokens(given, place)
    _check_names(pasts, [argument.name for argument in outputs], place)
    returned = {argument.name: argument for argument in outputs}
    cache = tuple(_cache_tensor(given[name], returned[_present(name)], place) for name in pasts)
    return Signature(
        tokens=frozenset(name for name in TOKEN_INPUTS if name in given),
        cache=cache,
        vocabulary=_vocabulary(returned["logits"], place),
    )


def check_agreement(declared: Signature, opened: Signature, place: str) -> None:
    """Compare what the file said with what the session has; the session may know more, the vocabulary's size.

    Raises:
        BadInputError: they differ, so what was checked is not what would run.
    """
    known = opened.vocabulary if declared.vocabulary is None else declared.vocabulary
    if replace(declared, vocabulary=known) != opened:
        raise BadInputError(
            f"{place}: ONNX Runtime opened another graph than the one that was checked: was the file changed meanwhile?"
        )


def _check_tokens(given: Mapping[str, Described], place: str) -> None:
    missing = [name for name in TOKEN_INPUTS if name not in given]
    if "input_ids" in missing or len(missing) > 1:
        raise BadInputError(
            f"{place} lacks the inputs {_listed(missing)}: input_ids is always needed, and one of "
            f"attention_mask and position_ids; {_WAY_OUT}"
        )
    for name in TOKEN_INPUTS:
        if name in given and (given[name].type != "tensor(int64)" or len(given[name].shape or ()) != 2):
            raise BadInputError(
                f"{place}: input {name} is a {given[name].type} of shape {_axes(given[name])}, "
                "and int64 [batch, length] is what this runner gives"
            )


def _check_names(pasts: Sequence[str], outputs: Sequence[str], place: str) -> None:
    in_order = [
        f"past_key_values.{layer}.{part}" for layer in range((len(pasts) + 1) // 2) for part in ("key", "value")
    ]
    if list(pasts) != in_order:
        raise BadInputError(
            f"{place} takes the cache as {_listed(pasts)}: layers from 0, key before value, is the order; {_WAY_OUT}"
        )
    wanted = ["logits", *map(_present, pasts)]
    if list(outputs) != wanted:
        raise BadInputError(f"{place} gives {_listed(outputs)}, and should give {_listed(wanted)}: {_WAY_OUT}")


def _cache_tensor(past: Described, present: Described, place: str) -> CacheTensor:
    if past.type not in CACHE_TYPES or present.type != past.type:
        raise BadInputError(
            f"{place}: {past.name} is a {past.type} and {present.name} a {present.type}: a cache is one of "
            f"{', '.join(CACHE_TYPES)}, the same on both sides"
        )
    shape = past.shape or ()
    heads, size = (shape[1], shape[3]) if len(shape) == 4 else (None, None)
    if not (isinstance(heads, int) and isinstance(size, int) and heads > 0 and size > 0):
        raise BadInputError(
            f"{place}: {past.name} has the shape {_axes(past)}, and [batch, heads, length, size] with numbers for "
            f"heads and size is needed to begin an empty cache: {_WAY_OUT}"
        )
    for axis, meaning in ((0, "batch"), (2, "length")):
        if isinstance(shape[axis], int):
            raise BadInputError(
                f"{place}: axis {axis} ({meaning}) of {past.name} is fixed to {shape[axis]}: "
                "export the model with dynamic axes"
            )
    return CacheTensor(past.name, present.name, CACHE_TYPES[past.type], heads, size)


def _vocabulary(logits: Described, place: str) -> int | None:
    shape = logits.shape or (None, None, None)
    if logits.type not in LOGITS_TYPES or len(shape) != 3:
        raise BadInputError(
            f"{place}: logits is a {logits.type} of shape {_axes(logits)}, and this runner reads "
            f"{', '.join(sorted(LOGITS_TYPES))} [batch, length, vocabulary]: cast them in the graph"
        )
    return shape[2] if isinstance(shape[2], int) else None


def _present(past: str) -> str:
    return "present" + past.removeprefix("past_key_values")


def _axes(argument: Described) -> str:
    return "unknown" if argument.shape is None else shown(list(argument.shape))


def _listed(names: Sequence[str]) -> str:
    return shown(", ".join(names))
