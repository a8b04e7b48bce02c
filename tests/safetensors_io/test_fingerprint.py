"""Fingerprints against values computed here from the format's own text."""

import hashlib
import json

import numpy as np
import pytest

from alignez_bake.safetensors_io import (
    config_sha256,
    fingerprint,
    open_folder,
    tensors_sha256,
    write_tensors,
)
from alignez_bake.safetensors_io.file_access import open_data

EDGE = 65536


def test_config_leaves_out_three_keys_and_no_others():
    config = {
        "model_type": "llama",
        "vocab_size": 3,
        "rope": {"theta": 1e4, "dtype": "x"},
        "name": "é",
        "t": [0.0, 1e-05],
    }
    digest = config_sha256(config)
    text = (
        '{"model_type": "llama", "name": "\\u00e9", "rope": {"dtype": "x", "theta": 10000.0}, '
        '"t": [0.0, 1e-05], "vocab_size": 3}'
    )
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert config_sha256(config | {"transformers_version": "5", "dtype": "bfloat16", "_name_or_path": "x"}) == digest
    assert config_sha256(dict(reversed(config.items()))) == digest
    for change in ({"torch_dtype": "bfloat16"}, {"vocab_size": 4}, {"rope": {"theta": 1e4}}, {"extra": None}):
        assert config_sha256(config | change) != digest


def test_config_is_not_changed():
    config = {"dtype": "bfloat16", "a": 1}
    config_sha256(config)
    assert config == {"dtype": "bfloat16", "a": 1}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "b": rng.integers(0, 255, size=3 * EDGE).astype(np.uint8),
        "a": rng.integers(0, 255, size=EDGE + 5).astype(np.uint8),
        "B": rng.normal(size=(2, 3)).astype(np.float32),
        "é": np.zeros((0, 3)),
        "s": np.array(2, np.int64),
    }


@pytest.fixture
def folder(tmp_path, arrays):
    write_tensors(tmp_path / "model.safetensors", arrays)
    return tmp_path


def test_tensors_as_the_docstring_says(folder, arrays):
    stream = b""
    for name, dtype in (("B", "F32"), ("a", "U8"), ("b", "U8"), ("s", "I64"), ("é", "F64")):
        data = arrays[name].tobytes()
        stream += json.dumps([name, dtype, list(arrays[name].shape)]).replace(" ", "").encode() + b"\n"
        stream += data[:EDGE] + data[-EDGE:]
    assert tensors_sha256(open_folder(folder)) == hashlib.sha256(stream).hexdigest()


def test_sharding_does_not_count(folder, arrays, tmp_path):
    out = tmp_path / "sharded"
    out.mkdir()
    weight_map = {name: f"model-{i}.safetensors" for i, name in enumerate(arrays)}
    for name, file in weight_map.items():
        write_tensors(out / file, {name: arrays[name]}, {"format": "pt"})
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert tensors_sha256(open_folder(out)) == tensors_sha256(open_folder(folder))


def changed(array, at):
    array = array.copy()
    array.reshape(-1)[at] += 1
    return array


@pytest.mark.parametrize(
    ("name", "at", "seen"),
    [
        ("b", 0, True),
        ("b", EDGE - 1, True),
        ("b", EDGE, False),
        ("b", 2 * EDGE - 1, False),
        ("b", 2 * EDGE, True),
        ("b", -1, True),
        ("a", 30, True),
        ("B", 3, True),
        ("s", 0, True),
    ],
)
def test_edges_are_seen_and_the_middle_is_not(folder, arrays, name, at, seen):
    before = tensors_sha256(open_folder(folder))
    write_tensors(folder / "model.safetensors", arrays | {name: changed(arrays[name], at)})
    assert (tensors_sha256(open_folder(folder)) != before) == seen


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: a | {"B": a["B"].reshape(3, 2)}, id="shape"),
        pytest.param(lambda a: a | {"B": a["B"].view(np.int32)}, id="dtype"),
        pytest.param(lambda a: {("C" if k == "B" else k): v for k, v in a.items()}, id="name"),
        pytest.param(lambda a: a | {"extra": np.zeros(0)}, id="added"),
        pytest.param(lambda a: {k: v for k, v in a.items() if k != "é"}, id="removed"),
    ],
)
def test_shape_dtype_and_names_are_seen(folder, arrays, change):
    before = tensors_sha256(open_folder(folder))
    write_tensors(folder / "model.safetensors", change(arrays))
    assert tensors_sha256(open_folder(folder)) != before


def test_a_file_is_opened_once_for_a_run_of_names_that_lie_in_it(tmp_path, arrays, monkeypatch):
    files = {"B": "model-1.safetensors", "a": "model-1.safetensors", "b": "model-2.safetensors"}
    for file in set(files.values()):
        write_tensors(tmp_path / file, {name: arrays[name] for name in files if files[name] == file})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    folder = open_folder(tmp_path)
    opened = []

    def counting(header):
        opened.append(header.path.name)
        return open_data(header)

    monkeypatch.setattr(fingerprint, "open_data", counting)
    tensors_sha256(folder)
    assert opened == ["model-1.safetensors", "model-2.safetensors"]
