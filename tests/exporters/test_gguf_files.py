"""The files themselves: what llama.cpp looks for is there, and nothing wrong is written or believed."""

from __future__ import annotations

import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
from alignez_bake.exporters.gguf_files import LoraPair, read_control_vector, read_lora, write_control_vector, write_lora
from alignez_bake.exporters.gguf_names import LLAMA_CPP_NAMES, llama_cpp_name, tensor_names

from alignez_bake.architectures.architecture import architecture_for, known_model_types
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site

LLAMA = architecture_for({"model_type": "llama"})
CONFIG = {"num_hidden_layers": 4}


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def lora_pairs():
    return [
        LoraPair("model.layers.1.self_attn.o_proj", random(2, 6), random(5, 2)),
        LoraPair("model.layers.3.mlp.down_proj", random(2, 7), random(5, 2, seed=1)),
    ]


@pytest.fixture
def lora(tmp_path):
    write_lora(tmp_path / "adapter.gguf", LLAMA, CONFIG, lora_pairs(), alpha=2.0)
    return tmp_path / "adapter.gguf"


@pytest.fixture
def vector(tmp_path):
    write_control_vector(tmp_path / "vector.gguf", LLAMA, {3: random(5), 1: random(5, seed=1)})
    return tmp_path / "vector.gguf"


def test_the_adapter_is_what_llama_cpp_looks_for(lora):
    reader = gguf.GGUFReader(lora)
    expected = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 2.0,
    }
    assert {key: reader.get_field(key).contents() for key in expected} == expected
    # GGUF's own order of dimensions: the last one first.
    assert {tensor.name: tensor.shape.tolist() for tensor in reader.tensors} == {
        "blk.1.attn_output.weight.lora_a": [6, 2],
        "blk.1.attn_output.weight.lora_b": [2, 5],
        "blk.3.ffn_down.weight.lora_a": [7, 2],
        "blk.3.ffn_down.weight.lora_b": [2, 5],
    }
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}


def test_the_control_vector_is_what_llama_cpp_looks_for(vector):
    reader = gguf.GGUFReader(vector)
    expected = {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }
    assert {key: reader.get_field(key).contents() for key in expected} == expected
    assert {tensor.name: tensor.shape.tolist() for tensor in reader.tensors} == {"direction.1": [5], "direction.3": [5]}


def test_an_adapter_comes_back(lora):
    found = read_lora(lora)
    assert (found.architecture, found.alpha) == ("llama", 2.0)
    first, second = lora_pairs()
    expected = {"blk.1.attn_output.weight": first, "blk.3.ffn_down.weight": second}
    assert found.pairs.keys() == expected.keys()
    for name, pair in expected.items():
        np.testing.assert_array_equal(found.pairs[name][0], pair.a)
        np.testing.assert_array_equal(found.pairs[name][1], pair.b)


def test_a_control_vector_comes_back(vector):
    found = read_control_vector(vector)
    assert found.architecture == "llama"
    assert sorted(found.shifts) == [1, 3]
    np.testing.assert_array_equal(found.shifts[3], random(5))
    np.testing.assert_array_equal(found.shifts[1], random(5, seed=1))


def test_experts_keep_their_dimension(tmp_path):
    mixtral = architecture_for({"model_type": "mixtral"})
    pair = LoraPair("model.layers.2.block_sparse_moe.experts.w2", random(3, 2, 7), random(3, 5, 2))
    write_lora(tmp_path / "adapter.gguf", mixtral, CONFIG, [pair], alpha=2.0)
    (tensor, _) = gguf.GGUFReader(tmp_path / "adapter.gguf").tensors
    assert (tensor.name, tensor.shape.tolist()) == ("blk.2.ffn_down_exps.weight.lora_a", [7, 2, 3])
    ((a, b),) = read_lora(tmp_path / "adapter.gguf").pairs.values()
    assert (a.shape, b.shape) == ((3, 2, 7), (3, 5, 2))


def test_the_same_input_gives_the_same_bytes(lora, vector, tmp_path):
    write_lora(tmp_path / "again.gguf", LLAMA, CONFIG, lora_pairs(), alpha=2.0)
    assert (tmp_path / "again.gguf").read_bytes() == lora.read_bytes()
    write_control_vector(tmp_path / "again.gguf", LLAMA, {1: random(5, seed=1), 3: random(5)})
    assert (tmp_path / "again.gguf").read_bytes() == vector.read_bytes()


NAMES = {"attn_write": "attn_output", "mlp_write": "ffn_down", "mlp_gate": "ffn_gate"}


@pytest.mark.parametrize("model_type", sorted(LLAMA_CPP_NAMES))
def test_every_site_has_a_name(model_type):
    architecture = architecture_for({"model_type": model_type})
    sites = [kind for kind, linear in architecture.sites.items() if linear.experts is None]
    modules = {architecture.module_path(Site(kind, 1)): kind for kind in sites}
    found = tensor_names(architecture, {architecture.layer_count: 3}, modules)
    expected = {module: f"blk.1.{NAMES[kind]}.weight" for module, kind in modules.items()}
    if model_type == "phi3":  # the gate is the first half of one tensor
        expected["model.layers.1.mlp.gate_up_proj"] = "blk.1.ffn_up.weight"
    assert found == expected


def test_every_model_type_is_known_or_refused_by_name():
    assert set(known_model_types()) - set(LLAMA_CPP_NAMES) == {"opt", "deepseek_v3", "gpt_oss", "qwen3_moe"}
    with pytest.raises(BadInputError, match=r"not made for model_type 'opt'.*gemma2, gemma3_text, gpt2"):
        llama_cpp_name("opt")


def test_a_module_that_the_table_lacks_is_refused():
    with pytest.raises(BadInputError, match=r"lacks model\.layers\.1\.nothing"):
        tensor_names(LLAMA, CONFIG, ["model.layers.1.mlp.down_proj", "model.layers.1.nothing"])
    with pytest.raises(BadInputError, match=r"lacks model\.layers\.4"):
        tensor_names(LLAMA, CONFIG, ["model.layers.4.mlp.down_proj"])


def test_the_extra_is_named_where_the_package_is_missing(lora, vector, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    pairs = lora_pairs()
    for call in (
        lambda: read_lora(lora),
        lambda: read_control_vector(vector),
        lambda: write_lora(tmp_path / "new.gguf", LLAMA, CONFIG, pairs, alpha=1.0),
        lambda: write_control_vector(tmp_path / "new.gguf", LLAMA, {1: random(5)}),
    ):
        with pytest.raises(BadInputError, match=r"alignez-bake\[gguf\]"):
            call()
    assert not (tmp_path / "new.gguf").exists()


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (random(2, 6), random(5, 3), "are no pair"),
        (random(6), random(5, 2), "of 2 or 3 dimensions"),
        (random(2, 6).astype(np.float64), random(5, 2), "must be float32"),
        (random(3, 2, 6), random(5, 2), "are no pair"),
        (random(3, 2, 6), random(4, 5, 2), "are no pair"),
        (random(0, 6), random(5, 0), "of 2 or 3 dimensions"),
        (np.full((2, 6), np.nan, np.float32), random(5, 2), "not finite"),
        (random(2, 6), np.full((5, 2), np.inf, np.float32), "not finite"),
    ],
)
def test_what_is_no_pair_is_refused(a, b, said):
    with pytest.raises(BadInputError, match=said):
        LoraPair("model.layers.1.self_attn.o_proj", a, b)


@pytest.mark.parametrize(
    ("pairs", "alpha", "said"),
    [
        ([], 2.0, "at least one pair"),
        (lora_pairs(), float("nan"), "alpha nan"),
        (lora_pairs()[:1] * 2, 2.0, "a pair already"),
    ],
)
def test_what_is_no_adapter_is_not_written(pairs, alpha, said, tmp_path):
    with pytest.raises(BadInputError, match=said):
        write_lora(tmp_path / "adapter.gguf", LLAMA, CONFIG, pairs, alpha=alpha)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shifts", "said"),
    [
        ({}, "at least one shift"),
        ({0: random(5)}, "layer 0"),
        ({1: random(5), 2: random(6)}, r"widths \[5, 6\]"),
        ({1: random(5).astype(np.float64)}, "must be float32"),
        ({1: random(5, 1)}, "of 1 dimensions"),
        ({1: np.full(5, np.inf, np.float32)}, "not finite"),
    ],
)
def test_what_is_no_control_vector_is_not_written(shifts, said, tmp_path):
    with pytest.raises(BadInputError, match=said):
        write_control_vector(tmp_path / "vector.gguf", LLAMA, shifts)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_cut_off_is_refused_wherever_it_is_cut(lora, vector):
    for file, read in ((lora, read_lora), (vector, read_control_vector)):
        whole = file.read_bytes()
        data_end = len(whole)
        for end in range(data_end):
            file.write_bytes(whole[:end])
            try:
                read(file)
            except BadInputError:
                continue
            # Only the padding behind the last tensor can be missing without a loss.
            assert not any(whole[end:])


def test_a_damaged_byte_is_refused_or_read_as_another_value(lora):
    whole = lora.read_bytes()
    header = whole.index(random(2, 6).tobytes()[:8])
    refused = 0
    for place in range(header):
        lora.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_lora(lora)
        except BadInputError:
            refused += 1
    assert refused > header / 3


def foreign(path, tensors, *, architecture="llama", **metadata):
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(key.replace("__", "."), value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ADAPTER = {"general__type": "adapter", "adapter__type": "lora", "adapter__lora__alpha": 2.0}
PAIR = {"blk.1.ffn_down.weight.lora_a": random(2, 6), "blk.1.ffn_down.weight.lora_b": random(5, 2)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        (PAIR, ADAPTER | {"general__type": "model"}, "general.type = 'model'"),
        (PAIR, ADAPTER | {"adapter__type": "other"}, "adapter.type = 'other'"),
        (PAIR, ADAPTER | {"adapter__lora__alpha": "2"}, "alpha = '2'"),
        (PAIR, ADAPTER | {"adapter__lora__alpha": float("inf")}, "alpha = inf"),
        (PAIR, {"general__type": "adapter"}, "no metadata 'adapter.type'"),
        ({}, ADAPTER, "no tensors"),
        ({"blk.1.ffn_down.weight.lora_a": random(2, 6)}, ADAPTER, "pairs of .lora_a and .lora_b"),
        (PAIR | {"blk.1.attn_norm.weight": random(6)}, ADAPTER, "'blk.1.attn_norm.weight'"),
        (PAIR | {"blk.1.ffn_down.weight.lora_b": random(5, 3)}, ADAPTER, "are no pair"),
        ({name: values.astype(np.float16) for name, values in PAIR.items()}, ADAPTER, "as F16"),
    ],
)
def test_what_is_no_adapter_is_not_read(tensors, metadata, said, tmp_path):
    with pytest.raises(BadInputError, match=said):
        read_lora(foreign(tmp_path / "file.gguf", tensors, **metadata))


VECTOR = {"controlvector__model_hint": "llama", "controlvector__layer_count": 1.0}


@pytest.mark.parametrize(
    ("architecture", "tensors", "metadata", "said"),
    [
        ("llama", {"direction.1": random(5)}, VECTOR, "general.architecture = 'llama'"),
        ("controlvector", {"direction.0": random(5)}, VECTOR, "'direction.0'"),
        ("controlvector", {"direction.x": random(5)}, VECTOR, "'direction.x'"),
        ("controlvector", {"direction.1": random(5, 2)}, VECTOR, "of 1 dimensions"),
        ("controlvector", {"direction.1": random(5), "direction.2": random(6)}, VECTOR, "widths"),
        ("controlvector", {"direction.1": random(5), "direction.2": random(5)}, VECTOR, "layer_count = 1.0, but 2"),
    ],
)
def test_what_is_no_control_vector_is_not_read(architecture, tensors, metadata, said, tmp_path):
    with pytest.raises(BadInputError, match=said):
        read_control_vector(foreign(tmp_path / "file.gguf", tensors, architecture=architecture, **metadata))


def test_a_file_of_the_other_kind_or_of_none_is_refused(lora, vector, tmp_path):
    with pytest.raises(BadInputError, match=r"no metadata 'general\.type'"):
        read_lora(vector)
    with pytest.raises(BadInputError, match=r"general\.architecture = 'llama'"):
        read_control_vector(lora)
    (tmp_path / "text.gguf").write_text("not at all a file of this kind, but long enough for one")
    with pytest.raises(BadInputError, match="no whole GGUF file"):
        read_lora(tmp_path / "text.gguf")
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        read_lora(tmp_path / "missing.gguf")


@pytest.mark.parametrize("element", [gguf.GGUFValueType.UINT8, gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY])
def test_an_array_longer_than_the_file_is_refused_at_once(tmp_path, element):
    array = struct.pack("<IQ", element, 2**40)
    if element == gguf.GGUFValueType.ARRAY:
        array = struct.pack("<IQ", element, 1) * 5000  # arrays of arrays of arrays
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<I", gguf.GGUFValueType.ARRAY) + array
    file = tmp_path / "file.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + bytes(64))
    code = (
        "import sys; from pathlib import Path; from alignez_bake.errors import BadInputError\n"
        "from alignez_bake.exporters.gguf_files import read_lora\n"
        "try: read_lora(Path(sys.argv[1]))\n"
        "except BadInputError as error: print(error)"
    )
    # In a process of its own, since what this is about would never end.
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True, timeout=60)
    assert "is no whole GGUF file" in done.stdout


@pytest.mark.parametrize(("kind", "read"), [(b"adapter", read_lora), (b"controlvector", read_control_vector)])
def test_a_string_that_is_no_text_is_refused(kind, read, lora, vector):
    path = lora if kind == b"adapter" else vector
    data = path.read_bytes()
    length = len(kind).to_bytes(8, "little")
    assert length + kind in data
    path.write_bytes(data.replace(length + kind, length + b"\xff" + kind[1:], 1))
    with pytest.raises(BadInputError, match="bytes that are no text"):
        read(path)
