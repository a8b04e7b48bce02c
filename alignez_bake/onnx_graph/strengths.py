"""Inserted edits as a graph holds them: the strength multiplied into L and c, as `onnx_export/strengths.py` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.architectures.architecture import INSERTED_EDITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    FloatArray = NDArray[np.floating[Any]]

_SCALED: Final = ("left", "bias")
# One rounding to float32 loses 6e-8 of a tensor's norm; more than this is an overflow or lost digits.
_TOLERANCE: Final = 1e-6


def scaled_parameters(parameters: Mapping[str, FloatArray], config: Mapping[str, Any]) -> dict[str, FloatArray]:
    """Parameters of inserted edits as the initialisers of a graph.

    strength · (g(r R + s) Lᵀ + c) = g(r R + s) (strength · L)ᵀ + strength · c. Where the dtype cannot hold a product
    that could be divided again, the graph has L and c as they are, and the strength is a node; but for an edit of c
    alone, whose product with the strength is a constant.

    Args:
        parameters: L, R, s and c of each edit by the keys of an inserted checkpoint, float32 or float64.
        config: its config.json.

    Returns:
        As many, by the same keys; R and s, and those of strength 1, are what was given.
    """
    scaled = dict(parameters)
    for module, name, strength in _strengths(config):
        # A file may lack what precedes the base model's parts, so that only the end of the module's path is sure.
        ending = f".{INSERTED_EDITS}.{name}."
        mine = {
            key.rpartition(".")[2]: key
            for key in parameters
            if ending in key and f".{module}".endswith(f".{key.partition(ending)[0]}")
        }
        products = {part: _product(parameters[mine[part]], strength) for part in _SCALED if part in mine}
        held = all(_is_held(product, parameters[mine[part]], strength) for part, product in products.items())
        if held or "left" not in mine:
            scaled.update({mine[part]: product for part, product in products.items()})
    return scaled


def _strengths(config: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Module, name and strength of each inserted edit."""
    for entry in config.get(INSERTED_EDITS, ()):
        for part in entry["parts"]:
            for group in part["groups"]:
                for edit in group["edits"]:
                    yield entry["module"], edit["name"], float(edit["strength"])


def _product(array: FloatArray, strength: float) -> FloatArray:
    """The product in the array's own dtype, to which the strength is rounded first: as torch multiplies by a number."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(array * array.dtype.type(strength))


def _is_held(product: FloatArray, array: FloatArray, strength: float) -> bool:
    if not strength:
        return False
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        lost = np.linalg.norm(product / array.dtype.type(strength) - array)
    return bool(lost <= _TOLERANCE * np.linalg.norm(array))
