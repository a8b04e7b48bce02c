"""Tensors that are not stored: they answer as if they were."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import open_model_folder
from alignez_bake.rehome.virtual_tensors import NewTensor, VirtualTensors

GATE, DOWN, BIAS = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight", "new.bias"


@pytest.fixture
def base(tmp_path, save_tiny):
    return open_model_folder(save_tiny("llama", tmp_path / "base", max_shard_size="20KB")).tensors


@pytest.fixture
def virtual(base):
    return VirtualTensors(base, {BIAS: NewTensor("BF16", (5,), base.file_of(DOWN))}, {GATE: (80, 32), DOWN: (32, 80)})


def test_names_and_files(base, virtual):
    assert len(base.files) > 1
    assert virtual.names() == sorted([*base.names(), BIAS]) == list(virtual)
    assert len(virtual) == len(base) + 1
    assert BIAS in virtual
    assert "nothing" not in virtual
    assert virtual.file_of(BIAS) == base.file_of(DOWN)
    assert virtual.file_of(GATE) == base.file_of(GATE)
    assert [name for name in virtual if not virtual.is_base(name)] == sorted([GATE, DOWN, BIAS])


def test_entries_are_honest(base, virtual):
    assert virtual.entry("model.norm.weight") is base.entry("model.norm.weight")
    entry = virtual.entry(BIAS)
    assert (entry.name, entry.dtype, entry.shape, entry.nbytes) == (BIAS, "BF16", (5,), 10)
    entry = virtual.entry(DOWN)
    assert (entry.dtype, entry.shape, entry.nbytes) == ("F32", (32, 80), 32 * 80 * 4)
    assert virtual.read(BIAS).dtype.itemsize == 2


def test_values_lie_at_the_leading_corner_and_the_rest_is_zero(base, virtual):
    assert not virtual.read(BIAS).any()
    gate, down = virtual.read(GATE), virtual.read(DOWN)
    np.testing.assert_array_equal(gate[:64], base.read(GATE))
    np.testing.assert_array_equal(down[:, :64], base.read(DOWN))
    assert not gate[64:].any()
    assert not down[:, 64:].any()
    np.testing.assert_array_equal(virtual.read("model.norm.weight"), base.read("model.norm.weight"))


def test_bytes_are_those_of_the_values(base, virtual):
    for name in (BIAS, GATE, "model.norm.weight"):
        data = virtual.read(name).tobytes()
        assert b"".join(virtual.iter_blocks(name, 24)) == data
        assert len(data) == virtual.entry(name).nbytes
        assert virtual.read_bytes_range(name, 2, 8) == data[2:8]
    with pytest.raises(ValueError, match="at least 1"):
        virtual.iter_blocks(GATE, 0)
    with pytest.raises(ValueError, match="not in tensor"):
        virtual.read_bytes_range(BIAS, 0, 11)


def test_what_does_not_fit_is_a_fault_of_ours(base):
    with pytest.raises(ValueError, match="is a tensor of the base"):
        VirtualTensors(base, {GATE: NewTensor("F32", (1,), base.files[0])}, {})
    for shape in ((63, 32), (64,), (64, 31)):
        with pytest.raises(ValueError, match="cannot grow"):
            VirtualTensors(base, {}, {GATE: shape})


def test_growing_to_the_same_shape_leaves_the_bases_own(base):
    assert VirtualTensors(base, {}, {GATE: (64, 32)}).is_base(GATE)


@pytest.mark.parametrize("method", ["entry", "read", "file_of", "is_base", "iter_blocks"])
def test_a_tensor_that_is_not_there_is_refused(virtual, method):
    with pytest.raises(BadInputError, match="no tensor"):
        getattr(virtual, method)("nothing")
