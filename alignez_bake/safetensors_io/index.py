"""The index of a sharded model, brought in line with rewritten shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_bake.safetensors_io.folder_layout import read_index
from alignez_bake.safetensors_io.new_file import new_file
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from alignez_bake.safetensors_io.header import Header


def rewrite_index(
    source: str | Path, target: str | Path, headers: Mapping[str, Header], *, dropped: Collection[str] = ()
) -> None:
    """Write a base's index for new shards: `metadata.total_size` and `weight_map` follow them, the rest stays.

    Where nothing changes, the bytes do not change either. Tensors that the base lacked are added to the map, at
    their place if it was sorted, else at its end.

    Args:
        source: the base's `model.safetensors.index.json`.
        target: the index to write; may be `source` itself.
        headers: the header of every new shard, by file name.
        dropped: tensors of the base that the new shards lack.

    Raises:
        BadInputError: `source` is no valid index, or `target` cannot be written.
        ValueError: a tensor of the base lies in none of the shards.
    """
    source, target = Path(source), Path(target)
    index = read_index(source)
    old: dict[str, str] = {name: file for name, file in index["weight_map"].items() if name not in dropped}
    found = {name: file for file, header in headers.items() for name in header.json_order}
    missing = sorted(old.keys() - found.keys())
    if missing:
        raise ValueError(f"tensor {shown(missing[0])} of {source} lies in none of the new shards")
    order = list(old) + sorted(found.keys() - old.keys())
    if list(old) == sorted(old):
        order.sort()
    weight_map = {name: found[name] for name in order}
    metadata = index.get("metadata")
    old_metadata = metadata if isinstance(metadata, dict) else {}
    total_size = sum(header.data_bytes for header in headers.values())
    if weight_map == index["weight_map"] and old_metadata.get("total_size") == total_size:
        data = source.read_bytes()
    else:
        index["metadata"] = {**old_metadata, "total_size": total_size}
        index["weight_map"] = weight_map
        data = (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
    with new_file(target) as file:
        file.write(data)
