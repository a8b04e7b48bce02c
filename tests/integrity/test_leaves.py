"""The hash of leaves against its definition, written out here, and what it must tell apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from blake3 import blake3

from alignez_bake.integrity.hashing import hash_file, hash_tensor
from alignez_bake.integrity.leaves import LEAF_BYTES, LeafHasher, leaf_count, leaf_range, root_hash
from alignez_bake.safetensors_io.writer import write_tensors

MIB = 1 << 20
CONTEXT = "alignez-bake 2026-11-29 blake3-leaves"
DATA = np.random.default_rng(0).bytes(9 * MIB + 5)


def defined(data, offset=0):
    """As docs/integrity.md says."""
    cuts = [0, *range(-offset % (4 * MIB) or 4 * MIB, len(data), 4 * MIB), len(data)]
    hashes = [blake3(data[begin:end]).digest() for begin, end in itertools.pairwise(cuts) if begin < end]
    root = blake3(len(data).to_bytes(8, "little") + b"".join(hashes), derive_key_context=CONTEXT)
    return root.hexdigest()


# Made once, by the definition above: a version that reads them anew must find the same.
KNOWN = {
    b"": "22bb27f7054a856a3f9d6890b7ac0e4de929463a551af86b4fb3ffc27464ef19",
    b"abc": "7ebf21d4c8c5f3859b641c5522c042f6cf52eb7ab23d3a61c52b399026a2a7f2",
}


@pytest.mark.parametrize("data", KNOWN)
def test_known_values(data, tmp_path):
    (tmp_path / "file").write_bytes(data)
    assert hash_file(tmp_path / "file")[1] == KNOWN[data] == defined(data)


@pytest.mark.parametrize("size", [1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 8 * MIB, len(DATA)])
def test_files_hash_as_defined(size, tmp_path):
    (tmp_path / "file").write_bytes(DATA[:size])
    assert hash_file(tmp_path / "file") == (size, defined(DATA[:size]))


def test_a_tensor_is_cut_where_its_file_is(tmp_path):
    values = np.frombuffer(DATA[: 9 * MIB], np.uint8)
    header = write_tensors(tmp_path / "f.safetensors", {"a": values[:100], "b": values})
    entry = header.entries["b"]
    at = header.data_offset + entry.begin
    assert at % LEAF_BYTES
    assert hash_tensor(header, entry) == defined(values.tobytes(), at) != defined(values.tobytes())


@pytest.mark.parametrize("step", [1000_003, 4 * MIB, 5 * MIB, len(DATA)])
@pytest.mark.parametrize("offset", [0, 1, 4 * MIB - 1, 4 * MIB])
def test_however_the_bytes_come(offset, step):
    hasher = LeafHasher(offset)
    for begin in range(0, len(DATA), step):
        other = hasher.copy()
        hasher.update(DATA[begin : begin + step])
        other.update(b"something else")
    assert hasher.hexdigest() == hasher.hexdigest() == defined(DATA, offset)


def test_the_hashes_of_leaves_are_another_file():
    """One that is made of them, with or without the size, has not the hash of the file that they are of."""
    leaf = blake3(b"abc").digest()
    size = (3).to_bytes(8, "little")
    others = [leaf, size + leaf, blake3(size + leaf).digest()]
    assert defined(b"abc") not in {defined(other) for other in others}
    assert defined(b"abc") not in {blake3(b"abc").hexdigest(), blake3(size + leaf).hexdigest()}


def test_order_size_and_ends_count():
    found = {
        defined(DATA),
        defined(DATA[4 * MIB : 8 * MIB] + DATA[: 4 * MIB] + DATA[8 * MIB :]),
        defined(DATA[:-1]),
        defined(DATA + b"\0"),
        defined(DATA[: 4 * MIB]),
        defined(DATA[: 8 * MIB]),
    }
    assert len(found) == 6
    assert root_hash(3, b"") != root_hash(4, b"")


def test_ranges_cover_a_file():
    for size in (0, 1, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES):
        ranges = [leaf_range(number, size) for number in range(leaf_count(size))]
        assert [begin for begin, _ in ranges] == [0, *(end for _, end in ranges)][: len(ranges)]
        assert ([0] + [end for _, end in ranges])[-1] == size
