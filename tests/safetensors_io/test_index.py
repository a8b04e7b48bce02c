"""The index of rewritten shards."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from alignez_bake.safetensors_io import open_folder, rewrite_index, write_tensors

BF16 = np.dtype(ml_dtypes.bfloat16)
INDEX = "model.safetensors.index.json"


def test_index_follows_the_dtypes_and_keeps_the_rest(sharded, tmp_path):
    folder, arrays = sharded
    out = tmp_path / "out"
    out.mkdir()
    base = open_folder(folder)
    headers = {
        file: write_tensors(out / file, {name: arrays[name].astype(np.float32) for name in base.header(file).entries})
        for file in base.files
    }
    rewrite_index(base.index, out / INDEX, headers)
    old, new = (json.loads((f / INDEX).read_text()) for f in (folder, out))
    assert new["metadata"] == {"total_size": 2 * old["metadata"]["total_size"], "note": "kept"}
    assert new["weight_map"] == old["weight_map"]
    assert new["extra"] == -1
    result = open_folder(out)
    for name, array in arrays.items():
        np.testing.assert_array_equal(result.read(name), array.astype(np.float32))


def test_index_bytes_stay_where_nothing_changes(sharded, tmp_path):
    folder, _ = sharded
    base = open_folder(folder)
    rewrite_index(folder / INDEX, tmp_path / INDEX, {file: base.header(file) for file in base.files})
    assert (tmp_path / INDEX).read_bytes() == (folder / INDEX).read_bytes()


def test_index_gains_added_tensors_and_never_loses_one(sharded, tmp_path):
    folder, arrays = sharded
    base = open_folder(folder)
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    first, second = base.files
    part = {name: arrays[name] for name in ("layers.0.weight", "layers.1.weight")}
    headers = {
        first: write_tensors(out / first, part | {"layers.0.bias": np.ones(4, BF16)}),
        second: base.header(second),
    }
    rewrite_index(folder / INDEX, out / INDEX, headers)
    index = json.loads((out / INDEX).read_text())
    assert list(index["weight_map"]) == sorted([*arrays, "layers.0.bias"])
    assert index["metadata"]["total_size"] == 4 * 32 + 8
    assert open_folder(out).file_of("layers.0.bias") == first
    with pytest.raises(ValueError, match=r"'layers.2.weight'.*none of the new shards"):
        rewrite_index(folder / INDEX, out / INDEX, {first: headers[first]})
