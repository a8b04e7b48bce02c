"""Files and folders for the readers: sound ones, and sound ones that were damaged in one or several places."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from alignez_bake.safetensors_io.dtypes import BY_NAME
from alignez_bake.site import LAYERLESS, LEGAL_READS, SITE_KINDS
from tests.fuzz.json_trees import HOSTILE, INTEGERS, Members, mutate, text_of, tree_of

LENGTHS = st.sampled_from([0, 1, 7, 8, 2**31, 10**8, 10**8 + 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
NAMES = st.text('abc.\u00e9"\\', max_size=6)
WHOLE_BYTES = [name for name, dtype in BY_NAME.items() if dtype.bits >= 8]


@dataclass(frozen=True)
class Made:
    """Bytes of a file, and whether nothing was done to a sound one."""

    data: bytes
    sound: bool


def file_bytes(text, data=b"", length=None):
    """A safetensors file of these parts; `length` overrides the header's true one."""
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@st.composite
def damaged_bytes(draw, data):
    """A file with bytes changed, cut off, put in or added."""
    what = draw(st.sampled_from(["flip", "flip", "cut", "insert", "append", "repeat"]))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if what == "cut":
        return data[:at]
    if what == "repeat":
        return data + data[at:]
    some = draw(st.binary(min_size=1, max_size=9))
    if what == "append":
        return data + some
    return data[:at] + some + data[at + len(some) * (what == "flip") :]


@st.composite
def safetensors_files(draw, tree, data, *, sound=True):
    """A file of this header, a tree, and this data; most of them damaged somehow."""
    damage = draw(st.sampled_from(["none", "header", "header", "header", "bytes", "length"]))
    if damage == "header":
        for _ in range(draw(st.integers(1, 3))):
            mutate(draw, tree)
    text = text_of(tree) + b" " * draw(st.integers(0, 9))
    length = None
    if damage == "length":
        length = draw(LENGTHS | st.integers(-9, 9).map(lambda change: max(len(text) + change, 0)))
    whole = file_bytes(text, data, length)
    return Made(draw(damaged_bytes(whole)) if damage == "bytes" else whole, sound and damage == "none")


@st.composite
def entries(draw, *, dtypes=tuple(WHOLE_BYTES), names=NAMES, least=0):
    """Tensors of a header, a dict of dicts, without hole or overlap, and their data."""
    header, offset = {}, 0
    for name in draw(st.lists(names, min_size=least, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(dtypes))
        shape = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 5]), max_size=4))
        size = math.prod(shape) * BY_NAME[dtype].bits // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return header, draw(st.binary(min_size=offset, max_size=offset))


@st.composite
def moved_entries(draw, header):
    """The same tensors, one of them elsewhere or of another size, as if the file were so: each by itself is sound."""
    name = draw(st.sampled_from(sorted(header)))
    tensor = header[name]
    begin, end = tensor["data_offsets"]
    what = draw(st.sampled_from(["shift", "shift", "onto another", "grow", "huge and empty"]))
    if what == "shift":
        by = draw(st.sampled_from([-3, -2, -1, 1, 2, 3, 2**31, 2**32, 2**62, 2**63, 2**64, 10**4299]))
        return header | {name: tensor | {"data_offsets": [begin + by, end + by]}}
    if what == "onto another":
        other = header[draw(st.sampled_from(sorted(header)))]
        return header | {"again": other | {"shape": [*other["shape"], 1]}}
    if what == "huge and empty":
        shape = draw(st.permutations([0, draw(INTEGERS), draw(st.sampled_from([1, 2**31, 2**62]))]))
        return header | {"empty": {"dtype": "U8", "shape": shape, "data_offsets": [end, end]}}
    size = draw(st.sampled_from([1, 5, 2**31, 2**40, 2**62, 2**63 - 1]))
    return header | {name: {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}}


@st.composite
def header_files(draw):
    """Files of any tensors, with or without metadata, tensors in any order of the text."""
    header, data = draw(entries())
    moved = bool(header) and draw(st.booleans())
    if moved:
        header = draw(moved_entries(header))
    items = list(draw(st.permutations(list(header.items()))))
    if draw(st.booleans()):
        items.append(("__metadata__", draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))))
    tree = tree_of(dict(items))
    if moved:
        return Made(file_bytes(text_of(tree), data), sound=False)
    return draw(safetensors_files(tree, data))


ANY_BYTES = st.one_of(
    st.binary(max_size=200),
    st.builds(file_bytes, st.binary(max_size=200), st.binary(max_size=20)),
    st.builds(file_bytes, st.binary(max_size=64), length=LENGTHS),
    HOSTILE.map(text_of).map(file_bytes),
)


@st.composite
def _edit_entries(draw, index):
    """One entry of an edit file, a dict, and its arrays by name."""
    kind = draw(st.sampled_from(SITE_KINDS))
    site = {"kind": kind} | ({} if kind in LAYERLESS else {"layer": draw(st.integers(0, 40))})
    entry = {"site": site, "reads": "output", "gate": "identity"}
    entry |= {"positions": draw(st.sampled_from(["all", "last"])), "strength": draw(st.sampled_from([1.0, -0.5, 2, 0]))}
    if draw(st.booleans()):
        entry["objective"] = draw(st.sampled_from(["helpful", "\u00f6hm"]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shapes = {"bias": (3,)}
    if draw(st.booleans()):
        entry |= {
            "reads": draw(st.sampled_from(LEGAL_READS[kind])),
            "gate": draw(st.sampled_from(["identity", "relu"])),
        }
        shapes = {"left": (3, 2), "right": (3, 2)} | draw(st.sampled_from([{}, {"offset": (2,)}, shapes]))
    arrays = {f"edits.{index}.{part}": np.full(shape, 1 + index, dtype) for part, shape in shapes.items()}
    return entry, arrays


@st.composite
def _other_arrays(draw, arrays):
    """The same arrays but for one, which got another shape or values, another name, or is not there."""
    name = draw(st.sampled_from(sorted(arrays)))
    array = arrays.pop(name)
    what = draw(st.sampled_from(["shape", "shape", "all shapes", "values", "name", "drop"]))
    if what == "name":
        name = draw(st.sampled_from(["edits.0.left", "edits.7.bias", "edits.00.left", "edits.0.rank", "weight", ""]))
    if what == "values":
        array = np.full_like(array, draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 0.0])))
    shapes = st.lists(st.sampled_from([0, 0, 1, 2, 3]), max_size=3) | st.sampled_from([[0, 2**40], [2**40, 0], [0, 1]])
    if what == "all shapes":
        shape = draw(shapes)
        arrays = {other: np.zeros(shape, array.dtype) for other in arrays}
        array = np.zeros(shape, array.dtype)
    if what == "shape":
        array = np.zeros(draw(shapes), array.dtype)
    return arrays if what == "drop" else arrays | {name: array}


@st.composite
def edit_files(draw):
    """Edit files; damaged are the document within the metadata, the arrays, the header, or the file's bytes."""
    damage = draw(st.sampled_from(["none", "document", "document", "document", "arrays", "arrays", "file"]))
    made = [draw(_edit_entries(index)) for index in range(draw(st.integers(1, 3)))]
    hashes = {"model_type": "llama", "config_sha256": "0" * 64, "tensors_sha256": "f" * 64}
    document = {"format": 1, "base": draw(st.sampled_from([None, hashes])), "edits": [entry for entry, _ in made]}
    objectives = {entry["objective"] for entry, _ in made if "objective" in entry}
    if objectives:
        document["weights"] = dict.fromkeys(sorted(objectives), draw(st.sampled_from([1.0, -2, 0.5])))
    document["provenance"] = {"method": "ridge", "settings": {"rank": 2, "list": [1.5, None, True]}}
    tree = tree_of(document)
    if damage == "document":
        for _ in range(draw(st.integers(1, 2))):
            mutate(draw, tree)
    arrays = {name: array for _, parts in made for name, array in parts.items()}
    if damage == "arrays":
        arrays = draw(_other_arrays(arrays))
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        dtype = "F32" if array.dtype == np.float32 else "F64"
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = text_of(tree).decode("utf-8", "surrogateescape")
    whole = Members([["__metadata__", Members([["alignez", text]])], *tree_of(header)])
    if damage == "file":
        return draw(safetensors_files(whole, data))
    return Made(file_bytes(text_of(whole), data), sound=damage == "none")


SHARDS = ("model-1.safetensors", "model-2.safetensors")
OUTSIDE = "outside.safetensors"
# What a file of the folder may be, beside itself.
LINKS = ("inside", "outside", "outside through the folder", "nothing", "itself", "directory", "pipe", "blobs", "absent")
FILE_NAMES = st.sampled_from(
    [
        *(*SHARDS, "absent.safetensors", f"../{OUTSIDE}", f"./{SHARDS[0]}", "..", "", "/etc/hostname"),
        *("sub/x.safetensors", ".safetensors", "a\0.safetensors", "a\n.safetensors", "\ud800.safetensors"),
        *("x" * 300 + ".safetensors", "C:x.safetensors", "..\\x.safetensors", SHARDS[0].upper()),
    ]
)


@dataclass(frozen=True)
class MadeFolder:
    """A folder of two shards and an index.

    Attributes:
        shards: the bytes of each.
        index: the bytes of the index.
        links: for some of the three names, one of `LINKS`.
        in_cache: whether the folder lies as a snapshot does in the hub's cache.
        sound: whether all of this is as it should be.
    """

    shards: dict[str, bytes]
    index: bytes
    links: dict[str, str]
    in_cache: bool
    sound: bool


@st.composite
def index_folders(draw):
    """Folders whose index, shards or links were damaged, or nothing."""
    damage = draw(st.sampled_from(["none", "index", "index", "names", "names", "bytes", "shard", "links", "links"]))
    shards, weight_map = {}, {}
    for number, file in enumerate(SHARDS):
        names = st.sampled_from([f"{number}.{name}" for name in ("weight", "bias", "\u00e9")])
        header, data = draw(entries(names=names, least=1))
        made = draw(safetensors_files(tree_of(header), data)) if damage == "shard" else None
        shards[file] = made.data if made else file_bytes(text_of(tree_of(header)), data)
        weight_map |= dict.fromkeys(header, file)
    if damage == "names":
        weight_map[draw(st.sampled_from(sorted(weight_map)) | st.text(max_size=2))] = draw(FILE_NAMES)
    tree = tree_of({"metadata": {"total_size": 7}, "weight_map": weight_map})
    if damage == "index":
        for _ in range(draw(st.integers(1, 3))):
            mutate(draw, tree)
    index = text_of(tree)
    if damage == "bytes":
        index = draw(damaged_bytes(index) | st.binary(max_size=60) | HOSTILE.map(text_of))
    in_cache = draw(st.booleans())
    links = {}
    if damage == "links":
        links = draw(st.dictionaries(st.sampled_from([*SHARDS, "index"]), st.sampled_from(LINKS), min_size=1))
    return MadeFolder(shards, index, links, in_cache, sound=damage == "none")


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 2,
    "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}
# Entries whose values the readers look at, some of other model types.
READ_ENTRIES = (
    *("model_type", "architectures", "num_hidden_layers", "quantization_config", "tie_word_embeddings", "n_layer"),
    *("attention_bias", "mlp_bias", "first_k_dense_replace", "decoder_sparse_step", "mlp_only_layers", "num_experts"),
)
MODEL_TYPES = ("llama", "gpt2", "mixtral", "qwen3_moe", "deepseek_v3", "alignez_llama", "../llama", "bert")


@st.composite
def configs(draw):
    """config.json of a llama, damaged or not."""
    damage = draw(st.sampled_from(["none", "values", "values", "values", "bytes"]))
    tree = tree_of(LLAMA)
    if damage == "values":
        values = {name: tree_of(value) for name, value in LLAMA.items()}
        if draw(st.booleans()):
            values["model_type"] = draw(st.sampled_from(MODEL_TYPES))
            values["n_layer"] = 1
        for name in draw(st.lists(st.sampled_from(READ_ENTRIES), max_size=2)):
            hostile = draw(HOSTILE)
            wrapped = Members([["quant_method", hostile]]) if name == "quantization_config" else [hostile]
            values[name] = draw(st.sampled_from([hostile, wrapped]))
        tree = Members([name, value] for name, value in values.items())
        if draw(st.integers(0, 3)) == 3:
            mutate(draw, tree)
    text = text_of(tree)
    if damage == "bytes":
        text = draw(damaged_bytes(text) | st.binary(max_size=60) | HOSTILE.map(text_of))
    return Made(text, sound=damage == "none")
