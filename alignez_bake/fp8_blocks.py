"""FP8 weights with a scale a block, as DeepSeek and Qwen release them: what config.json says of them.

A matrix `NAME.weight` [out, in] of e4m3 codes has beside it `NAME.weight_scale_inv` [⌈out/r⌉, ⌈in/c⌉], with blocks of
r rows and c columns. Despite its name it is what the codes are multiplied with: W_ij = code_ij · scale_(i//r)(j//c).

An edited matrix is stored as BF16, without a scale, and its module joins `modules_to_not_convert`, by which loaders
know it. Written back to e4m3, with its three bits of fraction, the edit would be rounded away.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from alignez_bake.lowering.slot import TensorSource

CODES: Final = "F8_E4M3"
STORED: Final = "BF16"
_SCALE_DTYPES: Final = ("F32", "BF16")
_SCALE_SUFFIX: Final = "_scale_inv"
_WEIGHT: Final = ".weight"
# MiniMax spells it the second way. Where both are there, transformers reads the first and vLLM the second.
_LISTS: Final = ("modules_to_not_convert", "ignored_layers")
_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
# As an expression a plain name stands for itself: its dots match others too, which `_check_names` looks at.
_PLAIN: Final = re.compile(r"[\w.-]+")
_LOSSLESS: Final = (None, "bfloat16", "float32")


def scale_of(name: str) -> str:
    """Key of the scales of a weight."""
    return f"{name}{_SCALE_SUFFIX}"


@dataclass(frozen=True)
class Fp8Blocks:
    """The format of a base.

    Attributes:
        rows: of a block.
        columns: of a block.
    """

    rows: int
    columns: int

    def is_coded(self, tensors: TensorSource, name: str) -> bool:
        """Whether a tensor is one of codes."""
        return tensors.entry(name).dtype == CODES

    def check(self, tensors: TensorSource, name: str) -> None:
        """Refuse codes without the scales that they need.

        Args:
            tensors: of the base.
            name: of a tensor of codes.

        Raises:
            BadInputError: no matrix, no scales, or scales of another dtype or shape.
        """
        shape, scale = tensors.entry(name).shape, scale_of(name)
        if len(shape) != 2 or not name.endswith(_WEIGHT):
            raise BadInputError(
                f"{name} holds FP8 codes of shape {list(shape)}: an edit folds into the matrix of a linear map alone, "
                "a tensor NAME.weight of 2 dimensions; use the unquantised base"
            )
        if scale not in tensors:
            raise BadInputError(f"{name} holds FP8 codes, but {scale} is missing: download the base again")
        found, wanted = tensors.entry(scale), (-(-shape[0] // self.rows), -(-shape[1] // self.columns))
        if found.shape != wanted or found.dtype not in _SCALE_DTYPES:
            raise BadInputError(
                f"{scale} is {found.dtype} {list(found.shape)}: {name} {list(shape)} in blocks of "
                f"[{self.rows}, {self.columns}] needs {list(wanted)}, as {' or '.join(_SCALE_DTYPES)}; use the "
                "unquantised base"
            )


def fp8_blocks(quantization: Mapping[str, Any]) -> Fp8Blocks | None:
    """What `quantization_config` says of blocks; None where it is another format.

    Args:
        quantization: of config.json.

    Raises:
        BadInputError: FP8 of a kind that is not read: a scale a tensor or row, fixed scales of activations, packed
            experts, or blocks that are none.
    """
    if quantization.get("quant_method") != "fp8":
        return None
    way_out = "use the unquantised base, bake it, and quantise the result"
    blocks = quantization.get("weight_block_size")
    if blocks is None:
        raise BadInputError(
            "it holds quantised weights (quant_method 'fp8') without weight_block_size, so with one scale a tensor: "
            f"only FP8 with a scale a block is read; {way_out}"
        )
    if (
        not isinstance(blocks, list)
        or len(blocks) != len(("rows", "columns"))
        or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in blocks)
    ):
        raise BadInputError(f"its weight_block_size is {shown(blocks)}: it must be two positive integers")
    for entry, known in (("activation_scheme", "dynamic"), ("fmt", "e4m3"), ("expert_dtype", "fp8")):
        if (found := quantization.get(entry, known)) != known:
            raise BadInputError(
                f"it holds quantised weights (quant_method 'fp8') with {entry} = {shown(found)}: only {known} is read; "
                f"{way_out}"
            )
    return Fp8Blocks(*blocks)


def check_stored_as_bf16(config: Mapping[str, Any]) -> None:
    """Refuse a base whose config.json lets loaders cast BF16 to something that holds less.

    Raises:
        BadInputError: the dtype.
    """
    for key in _DTYPE_KEYS:
        if config.get(key) not in _LOSSLESS:
            raise BadInputError(
                f"config.json says {key} = {shown(config[key])}: edited tensors of an FP8 base are stored as bfloat16, "
                "which loaders would round again; use the unquantised base"
            )


def with_unconverted(
    config: Mapping[str, Any], tensors: TensorSource, edited: Iterable[str], head: str
) -> dict[str, Any]:
    """config.json with the modules of edited tensors in `modules_to_not_convert`.

    Where the base has no such list, transformers takes the head, and what is tied to it, for unconverted. A list
    replaces that, so everything that the files hold unconverted goes into it too.

    Args:
        config: the base's.
        tensors: the base's.
        edited: tensors of codes that are stored as BF16.
        head: name of the output embedding.

    Returns:
        A new config.

    Raises:
        BadInputError: a list that is none, or a name in it that would stand for a module that stays FP8 as well.
    """
    quantization = config["quantization_config"]
    lists = {key: quantization[key] for key in _LISTS if quantization.get(key) is not None}
    for key, listed in lists.items():
        if not (isinstance(listed, list) and all(isinstance(name, str) for name in listed)):
            raise BadInputError(f"config.json has {key} = {shown(listed)}: it must be a list of names of modules")
    weights = [name for name in sorted(tensors) if name.endswith(_WEIGHT) and len(tensors.entry(name).shape) == 2]
    chosen = set(edited)
    added = [_module(name) for name in weights if name in chosen]
    if not lists:
        plain = [_module(name) for name in weights if tensors.entry(name).dtype != CODES]
        added = [*sorted({*plain, head}), *added]
    staying = [_module(name) for name in weights if tensors.entry(name).dtype == CODES and name not in chosen]
    _check_names(added, staying)
    new = {
        key: [*listed, *(name for name in added if name not in listed)]
        for key, listed in (lists or {_LISTS[0]: []}).items()
    }
    return {**config, "quantization_config": {**quantization, **new}}


def _check_names(added: Sequence[str], staying: Sequence[str]) -> None:
    """Refuse names that stand for more than they must.

    transformers takes a name for every module that ends with it, and, as a regular expression from the front, for a
    module and all below it.
    """
    for name in added:
        if not _PLAIN.fullmatch(name):
            raise BadInputError(f"{shown(name)} is no name for modules_to_not_convert: use the unquantised base")
    ends, fronts = tuple(added), re.compile(rf"(?:{'|'.join(added)})(?:\.|$)")
    for module in staying:
        if module.endswith(ends) or fronts.match(module):
            raise BadInputError(
                f"a name that modules_to_not_convert needs would stand for {module} as well, which stays FP8: use the "
                "unquantised base"
            )


def _module(name: str) -> str:
    return name.removesuffix(_WEIGHT)
