"""Fingerprints that tie an edit file to its base: cheap at any size, the same on every machine.

Others compute them too, so the bytes that are hashed are spelled out here and must not change within format 1.
"""

from __future__ import annotations

import hashlib
import json
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.safetensors_io.file_access import open_data, read_into

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.safetensors_io.reader import TensorFolder

EDGE_BYTES: Final = 64 * 1024
_LEFT_OUT: Final = frozenset({"transformers_version", "dtype", "_name_or_path"})


def config_sha256(config: Mapping[str, Any]) -> str:
    """SHA-256 of a model's configuration, as 64 lower-case hexadecimal digits.

    Hashed is, with `config` the object of config.json,

        json.dumps(config, sort_keys=True).encode("ascii")

    as Python writes it with its defaults (`, ` and `: ` as separators, non-ASCII escaped, numbers as 1e-05, 10000.0,
    Infinity), after `transformers_version`, `dtype` and `_name_or_path` were removed at the top level: these three
    and no others. So `torch_dtype`, the older name of `dtype`, counts, and so do the three names inside of a nested
    configuration.

    Args:
        config: the parsed config.json; not changed.

    Raises:
        TypeError: a value that JSON does not know.
    """
    return hashlib.sha256(
        json.dumps({k: v for k, v in config.items() if k not in _LEFT_OUT}, sort_keys=True).encode("ascii")
    ).hexdigest()


def tensors_sha256(folder: TensorFolder) -> str:
    """SHA-256 over all tensors of a folder, as 64 lower-case hexadecimal digits.

    For each tensor, in order of name (by Unicode code points, which is the order of the UTF-8 bytes), these
    bytes follow each other, without anything between tensors:

    1. `json.dumps([name, dtype, shape], separators=(",", ":"), ensure_ascii=True)` as ASCII, dtype in the file's
       spelling and shape a list, then one newline. Example: `["h.0.ln_1.bias","BF16",[768]]`.
    2. the first 64 KiB (65536 bytes) of its data as it lies in the file; all of it if there is less.
    3. the last 64 KiB of its data; all of it, once more, if there is less.

    How many bytes 2 and 3 have follows from 1, so no two folders share a stream unless these parts are equal.
    Shards and their names do not count: a model that is only sharded otherwise keeps its fingerprint. A change
    in the middle of a large tensor goes unseen; this tells models apart and is no proof of integrity.

    Raises:
        BadInputError: a file changed or cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(EDGE_BYTES))
    # A run of names that lie in one file takes one opening of it: hundreds for 30 000 tensors, not 60 000.
    for file_name, names in groupby(folder.names(), folder.file_of):
        header = folder.header(file_name)
        with open_data(header) as file:
            for name in names:
                entry = header.entries[name]
                described = json.dumps([name, entry.dtype, list(entry.shape)], separators=(",", ":"))
                digest.update(described.encode("ascii") + b"\n")
                edge = buffer[: min(EDGE_BYTES, entry.nbytes)]
                read_into(file, header, entry.begin, edge)
                digest.update(edge)
                if entry.nbytes > EDGE_BYTES:
                    read_into(file, header, entry.end - EDGE_BYTES, edge)
                digest.update(edge)
    return digest.hexdigest()
