"""In which dtype a model runs here: as it is stored, or wider where the machine cannot compute in that."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from alignez_bake.model_folder import ModelFolder

_SIXTEEN_BITS: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_OF_FILE: Final = {"BF16": "bfloat16", "F16": "float16"}
_WIDER: Final = {"F32", "F64"}
_MEMORY_SHARE: Final = 0.5
"""Of the machine's memory, which weights in float32 may take: activations and whatever else runs need some, too."""


def running_dtype(folder: ModelFolder, device: str) -> torch.dtype | None:
    """float32 where a CPU has no arithmetic in the 16 bits that a model is stored in; None: as it is stored.

    Such a CPU widens, multiplies and rounds value by value. *(An AMD EPYC with AVX2, a map of 192 to 512 on 2048
    tokens: 6 billion operations a second in bfloat16, 50 in float32; a choice of edits for the demo model took 160
    seconds instead of 16.)* Every weight of 16 bits is one of float32, so what runs is the same model with fewer
    roundings. Weights that would take more than half of the machine's memory stay as they are stored: slow, but there.

    Args:
        folder: whose weights.
        device: "cpu", "cuda", ...
    """
    dtype = _SIXTEEN_BITS.get(_stated_dtype(folder))
    if device != "cpu" or dtype is None or cpu_computes_in(dtype):
        return None
    values = sum(math.prod(folder.tensors.entry(name).shape) for name in folder.tensors.names())
    return torch.float32 if 4 * values <= _MEMORY_SHARE * _memory_bytes() else None


def cpu_computes_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices of 16 bits on this CPU; True where torch does without it: who knows then."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True
    kernels = torch.ops.mkldnn
    supported = kernels._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else kernels._is_mkldnn_fp16_supported  # noqa: SLF001 - torch's own compiler asks it, and nothing public tells
    return bool(supported())


def _stated_dtype(folder: ModelFolder) -> str:
    """What `dtype="auto"` makes of a folder: what config.json says, else what the floating-point tensors are."""
    stated = folder.config.get("dtype", folder.config.get("torch_dtype"))
    if isinstance(stated, str):
        return stated
    dtypes = {folder.tensors.entry(name).dtype for name in folder.tensors.names()}
    narrow = sorted(dtypes & set(_OF_FILE))
    return "float32" if dtypes & _WIDER or not narrow else _OF_FILE[narrow[0]]


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
