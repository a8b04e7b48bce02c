"""The shape of a tensor into which an edit is to be folded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.fp8_blocks import CODES
from alignez_bake.safetensors_io.dtypes import is_plain_float

if TYPE_CHECKING:
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Site


def stored_shape(model: ModelFolder, name: str, site: Site | None, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor of plain floats, or of FP8 codes with their scales where the model has such.

    Args:
        model: whose files hold it.
        name: its key there.
        site: to which it belongs, for messages; None where it has none.
        dimensions: how many it must have.

    Raises:
        BadInputError: another dtype, such as that of a quantised base, another number of dimensions, or one
            of them 0: beside it, the others could be any number, and the file stay small.
    """
    entry = model.tensors.entry(name)
    where = name if site is None else f"{name} at site {site}"
    if model.fp8_blocks is not None and entry.dtype == CODES:
        model.fp8_blocks.check(model.tensors, name)
    elif not is_plain_float(entry.dtype):
        raise BadInputError(
            f"{where} is stored as {entry.dtype}, into which an edit cannot be folded: use an "
            "unquantised base, whose weights are F64, F32, F16 or BF16"
        )
    if len(entry.shape) != dimensions or 0 in entry.shape:
        raise BadInputError(
            f"{where} has shape {list(entry.shape)}: it must have {dimensions} dimensions, none of them 0"
        )
    return entry.shape
