"""Builders of safetensors files, sound and unsound, that do not go through the code under test."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file


def raw_file(header, data=b"", *, length=None):
    """Bytes of a file: `header` is an object or the JSON's own bytes; `length` overrides the true one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def make_file(tmp_path):
    def make(header, data=b"", *, length=None, name="model.safetensors"):
        path = tmp_path / name
        path.write_bytes(raw_file(header, data, length=length))
        return path

    return make


@pytest.fixture
def tensors():
    """One tensor of each sort that a checkpoint may hold, without the ones that only some libraries know."""
    rng = np.random.default_rng(0)
    return {
        "bf16": rng.normal(size=(5, 7)).astype(ml_dtypes.bfloat16),
        "fp16": rng.normal(size=(3, 3)).astype(np.float16),
        "fp32": rng.normal(size=(4, 2, 3)).astype(np.float32),
        "fp64": rng.normal(size=6),
        "int64": rng.integers(-9, 9, size=(2, 2)),
        "uint8": rng.integers(0, 255, size=5).astype(np.uint8),
        "bool": rng.integers(0, 2, size=7).astype(bool),
        "scalar": np.array(2.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards with an index, and its tensors."""
    rng = np.random.default_rng(1)
    arrays = {f"layers.{i}.weight": rng.normal(size=(4, 4)).astype(ml_dtypes.bfloat16) for i in range(4)}
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map = {}
    for shard in range(2):
        file = f"model-0000{shard + 1}-of-00002.safetensors"
        part = {f"layers.{i}.weight": arrays[f"layers.{i}.weight"] for i in (2 * shard, 2 * shard + 1)}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 4 * 32, "note": "kept"}, "weight_map": weight_map, "extra": -1}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder, arrays


@pytest.fixture
def source(tmp_path, tensors):
    """A file of `tensors`, as the library writes it."""
    path = tmp_path / "source.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def single(tmp_path, tensors):
    """A folder of one file of `tensors`."""
    folder = tmp_path / "single"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
