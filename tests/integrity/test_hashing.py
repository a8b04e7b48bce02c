"""Hashes against published values, and streams against one piece."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.integrity.hashing import ALGORITHMS, DEFAULT, hash_file, hash_tensor, hash_with_tensors, new_hasher
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES
from alignez_bake.safetensors_io.writer import write_tensors

# Of the empty text and of "abc": BLAKE3's own test vectors, and FIPS 180-4.
PUBLISHED = {
    ("blake3", b""): "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    ("blake3", b"abc"): "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
    ("sha256", b""): "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ("sha256", b"abc"): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
}


@pytest.mark.parametrize(("algorithm", "data"), PUBLISHED)
def test_published_values(algorithm, data, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert hash_file(path, algorithm) == (len(data), PUBLISHED[algorithm, data])


def test_the_default_is_the_one_of_leaves():
    assert DEFAULT == "blake3-leaves"
    assert set(ALGORITHMS) == {"blake3-leaves", "blake3", "sha256"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 5])
def test_a_file_of_several_blocks_hashes_as_one_piece(algorithm, size, tmp_path):
    data = np.random.default_rng(0).bytes(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    whole = new_hasher(algorithm)
    whole.update(data)
    assert hash_file(path, algorithm) == (size, whole.hexdigest())
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert hash_file(path, algorithm)[1] != whole.hexdigest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_weight_file_and_its_tensors_in_one_reading(algorithm, tmp_path):
    values = np.random.default_rng(1)
    big = values.standard_normal(BLOCK_BYTES // 8 + 3)
    header = write_tensors(tmp_path / "f.safetensors", {"a": big, "b": np.float32([1, 2]), "none": np.zeros((0, 4))})
    size, whole, tensors = hash_with_tensors(header, {"a", "none", "absent"}, algorithm)
    assert (size, whole) == hash_file(tmp_path / "f.safetensors", algorithm)
    assert set(tensors) == {"a", "none"}
    of_big = new_hasher(algorithm, offset=header.data_offset + header.entries["a"].begin)
    of_big.update(big.tobytes())
    assert tensors["a"] == of_big.hexdigest() == hash_tensor(header, header.entries["a"], algorithm)
    assert tensors["none"] == new_hasher(algorithm).hexdigest()


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(BadInputError, match="absent: cannot be read"):
        hash_file(tmp_path / "absent")
    with pytest.raises(BadInputError, match="cannot be read"):
        hash_file(tmp_path)
