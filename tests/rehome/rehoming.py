"""What the tests of re-homing share: an equivalent written to disk, and how far two models' logits are apart."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import torch

from alignez_bake.rehome.changes import changed_tokenizer_entries
from alignez_bake.safetensors_io.dtypes import cast_once, numpy_dtype_of
from alignez_bake.safetensors_io.writer import write_tensors
from tests.running import load
from tests.tiny_models import VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.model_folder import ModelFolder

FP32_END = 1e-5
MARGIN = 100


def write_folder(base: ModelFolder, rehomed: ModelFolder, out: Path, values: Mapping[str, NDArray] = {}) -> Path:
    """Write an equivalent as a model folder in one file; `values` replace tensors."""
    out.mkdir()
    for file in base.path.glob("*token*"):
        shutil.copy(file, out)
    if entries := changed_tokenizer_entries(base, rehomed):
        file = out / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    (out / "config.json").write_text(json.dumps(rehomed.config))
    tensors = {name: values.get(name, rehomed.tensors.read(name)) for name in rehomed.tensors.names()}
    for name, array in tensors.items():
        entry = rehomed.tensors.entry(name)
        assert array.shape == entry.shape
        tensors[name] = cast_once(np.asarray(array), numpy_dtype_of(entry.dtype))
    write_tensors(out / "model.safetensors", tensors, {"format": "pt"})
    return out


def logits_of(model, tokens: int = 24) -> torch.Tensor:
    """Logits of one forward pass; `model` is loaded, or a folder of fp32 weights."""
    model = load(model, torch.float32) if hasattr(model, "joinpath") else model
    ids = torch.randint(3, VOCABULARY, (2, tokens), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(ids).logits
