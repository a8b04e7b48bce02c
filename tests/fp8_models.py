"""Tiny models stored as FP8 with a scale a block, as DeepSeek and Qwen release theirs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch

from alignez_bake.safetensors_io.reader import open_folder
from alignez_bake.safetensors_io.writer import write_tensors
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

LARGEST_CODE = 448.0
_KEPT = ("embed_tokens", "lm_head", "gate.weight")


def save_fp8(
    model_type: str,
    path: Path,
    *,
    block: tuple[int, int] = (16, 16),
    scale_dtype: Any = np.float32,
    not_converted: list[str] | None = None,
    list_key: str = "modules_to_not_convert",
    **saving: Any,
) -> Path:
    """Save a tiny bfloat16 model, then turn the matrices of its layers into codes and scales.

    Args:
        model_type: as `save_tiny`.
        path: the folder to make.
        block: rows and columns of a block.
        scale_dtype: of the scales.
        not_converted: what config.json lists; no such entry where None.
        list_key: its name.
        saving: as `save_tiny`.
    """
    save_tiny(model_type, path, dtype=torch.bfloat16, **saving)
    tensors = open_folder(path)
    weight_map: dict[str, str] = {}
    for file in tensors.files:
        new: dict[str, NDArray[Any]] = {}
        for name in tensors.header(file).entries:
            values = tensors.read(name)
            if values.ndim == 2 and name.endswith(".weight") and not any(kept in name for kept in _KEPT):
                codes, scales = quantised(values.astype(np.float32), block)
                new[name] = codes
                new[f"{name}_scale_inv"] = scales.astype(scale_dtype)
            else:
                new[name] = values
        write_tensors(path / file, new, {"format": "pt"})
        weight_map |= dict.fromkeys(new, file)
    if tensors.index is not None:
        total = sum(open_folder_bytes(path / file) for file in tensors.files)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        tensors.index.write_text(json.dumps(index, indent=2), encoding="utf-8")
    quantization: dict[str, Any] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(block),
    }
    if not_converted is not None:
        quantization[list_key] = not_converted
    change_config(path, {"quantization_config": quantization})
    return path


def open_folder_bytes(file: Path) -> int:
    """Bytes of a file's data."""
    from alignez_bake.safetensors_io.header import read_header

    return read_header(file).data_bytes


def change_config(path: Path, entries: Mapping[str, Any]) -> None:
    """Set entries of config.json."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps({**config, **entries}, indent=2), encoding="utf-8")


def quantised(values: NDArray[np.float32], block: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Codes and scales of a matrix, block by block."""
    rows, columns = values.shape
    height, width = block
    codes = np.empty(values.shape, ml_dtypes.float8_e4m3fn)
    scales = np.empty((-(-rows // height), -(-columns // width)), np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
            scales[i, j] = np.abs(values[part]).max() / LARGEST_CODE
            codes[part] = (values[part] / scales[i, j]).astype(ml_dtypes.float8_e4m3fn)
    return codes, scales


def dequantised(codes: NDArray[Any], scales: NDArray[Any], block: tuple[int, int]) -> NDArray[np.float64]:
    """The numbers that codes stand for, written down entry by entry of the scales."""
    values = codes.astype(np.float64)
    height, width = block
    for (i, j), scale in np.ndenumerate(scales.astype(np.float64)):
        values[i * height : (i + 1) * height, j * width : (j + 1) * width] *= scale
    return values
