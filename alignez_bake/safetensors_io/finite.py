"""Looking for values that are not finite, as a stream and without a conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.dtypes import file_dtype_of, numpy_dtype_of
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.progress import Progress
    from alignez_bake.safetensors_io.reader import TensorFolder

# A value is NaN or infinite exactly if all bits of its exponent are set.
_EXPONENTS: Final[dict[str, tuple[int, int]]] = {
    "BF16": (2, 0x7F80),
    "F16": (2, 0x7C00),
    "F32": (4, 0x7F80_0000),
    "F64": (8, 0x7FF0_0000_0000_0000),
}
_BLOCK_BYTES: Final = 4 * 1024 * 1024


def all_finite(values: NDArray[Any]) -> bool:
    """Whether there is neither NaN nor infinity among F64, F32, F16 or BF16 values.

    Args:
        values: of one of these dtypes, of any shape, C-contiguous.
    """
    width, exponent = _EXPONENTS[file_dtype_of(values.dtype)]
    bits, sign = values.reshape(-1), 1 << (8 * width - 1)
    # As integers with a sign, all other values of either sign are smaller; without one, all other negative ones are,
    # and every positive one. Two passes that only read are quicker than one that takes the sign away first.
    largest, most_negative = bits.view(f"<i{width}").max(initial=0), bits.view(f"<u{width}").max(initial=0)
    return bool(largest < exponent and most_negative < sign + exponent)


def not_finite(name: str, place: Path) -> BadInputError:
    """The error of a tensor with such a value, in the file `place`."""
    return BadInputError(
        f"tensor {shown(name)} in {place} holds NaN or infinity: the base is damaged; download it again"
    )


def check_finite_tensors(folder: TensorFolder, *, progress: Progress | None = None) -> None:
    """Refuse a folder with a NaN or an infinity in any F64, F32, F16 or BF16 tensor.

    Raises:
        BadInputError: the message names the tensor and its file.
    """
    names = folder.names()
    with (progress or NoProgress()).task("checking the base's weights", len(names)) as advance:
        for name in names:
            advance()
            dtype = folder.entry(name).dtype
            if dtype not in _EXPONENTS:
                continue
            if np.prod(folder.entry(name).shape) == 1 and np.isneginf(folder.read(name).astype(np.float64)).all():
                continue  # the fill value of a mask: pythia's masked_bias, -1e9, is -inf in F16
            for block in folder.iter_blocks(name, _BLOCK_BYTES):
                if not all_finite(np.frombuffer(block, numpy_dtype_of(dtype))):
                    raise not_finite(name, folder.place_of(name))
