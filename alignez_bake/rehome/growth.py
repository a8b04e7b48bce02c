"""More hidden units for every MLP of a model: sizes and shapes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from alignez_bake.lowering.decide import Refusal
from alignez_bake.safetensors_io.names import resolve_key

if TYPE_CHECKING:
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.rehome.places import Mlp

# Quantised formats and kernels work in blocks of up to 256 values along a row of the writer.
_LARGEST_BLOCK: Final = 256


def mlp_tensor(model: ModelFolder, layer: int, module: str, kind: str) -> str:
    """The file's key of an MLP map's `weight`, or of its `bias` beside it.

    Raises:
        BadInputError: the files lack the weight.
    """
    architecture = model.architecture
    parameter = f"{architecture.layer_path(layer)}.{module}.weight"
    weight = resolve_key(model.tensors, parameter, architecture.base_model_prefix)
    return f"{weight.removesuffix('weight')}{kind}"


def unit_axis(mlp: Mlp, module: str) -> int:
    """The axis of a map's weight that counts hidden units: the outputs of a reader, the inputs of the writer."""
    is_output = module in mlp.readers
    return 0 if is_output == (mlp.layout == "out_in") else 1


def hidden_units(model: ModelFolder, mlp: Mlp) -> int | Refusal:
    """The number of hidden units that every layer has, from the shapes of its weights.

    Raises:
        BadInputError: the files lack a weight.
    """
    sizes = set()
    for layer in range(model.num_layers):
        for module in (*mlp.readers, mlp.write):
            name = mlp_tensor(model, layer, module, "weight")
            shape = model.tensors.entry(name).shape
            if len(shape) != 2:
                return Refusal(f"{name} has shape {list(shape)}: a linear map's weight has 2 dimensions")
            sizes.add(shape[unit_axis(mlp, module)])
    if len(sizes) > 1:
        listed = ", ".join(map(str, sorted(sizes)))
        return Refusal(f"its layers have MLPs of different sizes ({listed}), but one entry of config.json states one")
    return sizes.pop()


def grown_size(size: int, count: int) -> int:
    """The new number of hidden units: room for `count` more, and no less divisible than before.

    A multiple of the largest power of two up to 256 that divides the base's size: 14336 grows to 14592, the 432 of a
    small model to 448.
    """
    block = math.gcd(size, _LARGEST_BLOCK)
    return -(-(size + count) // block) * block


def grown_shapes(model: ModelFolder, mlp: Mlp, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the MLPs' tensors with `size` hidden units, the biases of the readers included where they exist.

    An added unit's rows and column are zeros. With f(0) = 0 of every activation here it gives 0, in a gated MLP
    f(0) · 0, and its column multiplies it by 0: nothing is added, exactly.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(model.num_layers):
        for module in (*mlp.readers, mlp.write):
            weight = mlp_tensor(model, layer, module, "weight")
            shape = list(model.tensors.entry(weight).shape)
            shape[unit_axis(mlp, module)] = size
            shapes[weight] = tuple(shape)
            bias = mlp_tensor(model, layer, module, "bias")
            if module != mlp.write and bias in model.tensors:
                shapes[bias] = (size,)
    return shapes
