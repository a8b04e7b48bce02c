"""What the initialisers of a graph must hold: the baked checkpoint's tensors, as a model loaded from it has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.certificate.tensor_comparison import values_off_formula
from alignez_bake.exporters.base_files import DTYPE_KEYS
from alignez_bake.exporters.dtype import FILE_DTYPES, file_dtype
from alignez_bake.onnx_graph.strengths import scaled_parameters
from alignez_bake.safetensors_io.dtypes import BY_NAME, cast_once, is_plain_float, numpy_dtype_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.exporters.checkpoint_contents import CheckpointContents
    from alignez_bake.lowering.fold import FoldedTensor


@dataclass(frozen=True)
class WantedTensor:
    """One tensor that a graph must hold.

    Attributes:
        whose: what it is, for messages: "the formula", "the edit" or "the base".
        shape: its dimensions.
        dtype: that it is stored in.
        loaded: that a loader may have cast it to; None: to none.
        folded: an edited tensor before it is rounded; None of all others.
        stored: the values of all others, in any dtype that rounds to `dtype` as the checkpoint's do.
    """

    whose: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    loaded: np.dtype[Any] | None
    folded: FoldedTensor | None = None
    stored: NDArray[Any] | None = None

    def difference(self, values: NDArray[Any]) -> str:
        """How values differ from this tensor, in words; "" where they do not.

        They may be held in a wider dtype, which loses nothing: a norm that computes in float32 holds its weights so.
        """
        if values.shape != self.shape:
            return f"has shape {list(values.shape)}, not {list(self.shape)}"
        # To numpy None equals float64.
        dtype = self.loaded if self.loaded is not None and self.loaded == values.dtype else self.dtype
        narrowed = cast_once(values, dtype)
        if narrowed is not values and _bits_off(cast_once(narrowed, values.dtype), values):
            return f"holds {values.dtype} values that are no {dtype} ones"
        if self.folded is not None:
            wrong = values_off_formula(self.folded.exact, np.ascontiguousarray(narrowed))
        else:
            assert self.stored is not None
            wrong = _bits_off(cast_once(self.stored, dtype), narrowed)
        return f"differs from {self.whose}'s in {wrong} of {values.size} values" if wrong else ""


class WantedTensors:
    """All tensors that a graph must hold, made one at a time."""

    def __init__(self, contents: CheckpointContents, dtype: str | None) -> None:
        """Describe them; nothing is read yet.

        Args:
            contents: of the baked checkpoint.
            dtype: of all float tensors; the stored dtypes where None.

        Raises:
            BadInputError: an unknown dtype.
        """
        self._contents = contents
        self._dtype = file_dtype(dtype)
        self._added = scaled_parameters(contents.added, contents.config)
        stated = next((contents.config[key] for key in DTYPE_KEYS if contents.config.get(key) is not None), None)
        # Plain `from_pretrained` casts every weight to the dtype of config.json, which is `dtype` where one is given.
        self._loaded = numpy_dtype_of(FILE_DTYPES[stated]) if dtype is None and stated in FILE_DTYPES else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions of a tensor."""
        return self._added[name].shape if name in self._added else self._contents.home.tensors.entry(name).shape

    def is_packed(self, name: str) -> bool:
        """Whether its values are packed below one byte, so that no array can hold them."""
        return name not in self._added and BY_NAME[self._contents.home.tensors.entry(name).dtype].numpy is None

    def make(self, name: str) -> WantedTensor:
        """One tensor.

        Raises:
            BadInputError: the base is damaged.
            ValueError: packed values.
        """
        if name in self._added:
            values = self._added[name]
            return WantedTensor("the edit", values.shape, values.dtype, None, stored=values)
        entry = self._contents.home.tensors.entry(name)
        is_float = is_plain_float(entry.dtype)
        dtype = numpy_dtype_of(self._dtype if self._dtype is not None and is_float else entry.dtype)
        loaded = self._loaded if is_float else None
        if name in self._contents.edited:
            return WantedTensor("the formula", entry.shape, dtype, loaded, folded=self._contents.edited.compute(name))
        return WantedTensor("the base", entry.shape, dtype, loaded, stored=self._contents.home.tensors.read(name))


def _bits_off(expected: NDArray[Any], found: NDArray[Any]) -> int:
    """How many values of one dtype are not the same bits."""
    bits = f"u{found.dtype.itemsize}"
    return int(np.count_nonzero(expected.view(bits) != found.view(bits)))
