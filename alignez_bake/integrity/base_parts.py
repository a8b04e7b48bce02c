"""What of the base undoes a bake: from its folder, or from `alignez/base_tensors.safetensors`, kept at baking.

That file holds what the result lacks and nothing else:

    tensors/NAME   the base's tensor of that name, where the result's is not the same, byte for byte
    headers/FILE   the JSON header of the base's weight file, as bytes (U8), where the result's is another
    files/NAME     a small file of the base, as bytes (U8), where the result's is another: config.json, the index
"""

from __future__ import annotations

import filecmp
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.integrity.folder_files import files_in
from alignez_bake.safetensors_io.dtypes import RANK
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES, iter_range
from alignez_bake.safetensors_io.folder_layout import check_inside
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.new_file import new_file
from alignez_bake.safetensors_io.reader import open_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.safetensors_io.header import TensorEntry
    from alignez_bake.safetensors_io.reader import TensorFolder
    from alignez_bake.streaming.written import WrittenFile

BASE_TENSORS_FILE: Final = f"{OURS}/base_tensors.safetensors"
_TENSORS, _HEADERS, _FILES = "tensors/", "headers/", "files/"
_ALIGNMENT: Final = 8


class BaseParts(Protocol):
    """Parts of a base, by name; None for what it does not hold."""

    def header(self, file: str) -> bytes | None:
        """The JSON header of a weight file, padding included."""
        ...

    def tensor(self, name: str) -> Iterator[memoryview] | None:
        """The bytes of a tensor, in blocks."""
        ...

    def file(self, name: str) -> Iterator[memoryview] | None:
        """The bytes of a whole file, in blocks."""
        ...

    def __str__(self) -> str:
        """Where it lies, for messages."""
        ...


class BaseFolder:
    """A base at hand; its files may lie in other shards than those of the result's base did."""

    def __init__(self, path: Path, tensors: TensorFolder) -> None:
        """Take an opened folder."""
        self._path, self._tensors = path, tensors

    def header(self, file: str) -> bytes | None:
        """As `BaseParts`."""
        return self._tensors.header(file).header_bytes if file in self._tensors.files else None

    def tensor(self, name: str) -> Iterator[memoryview] | None:
        """As `BaseParts`."""
        return self._tensors.iter_blocks(name) if name in self._tensors else None

    def file(self, name: str) -> Iterator[memoryview] | None:
        """As `BaseParts`.

        Raises:
            BadInputError: a symlink that leaves the folder.
        """
        path = self._path / name
        if not path.is_file():
            return None
        check_inside(self._path, name)
        return _file_blocks(path)

    def __str__(self) -> str:
        """Where it lies."""
        return str(self._path)


class KeptParts:
    """The base's part of a result that was baked to be reversible."""

    def __init__(self, result: Path) -> None:
        """Read the header of the file.

        Raises:
            BadInputError: no such file, or a damaged one.
        """
        self._header = read_header(result / BASE_TENSORS_FILE)

    def header(self, file: str) -> bytes | None:
        """As `BaseParts`."""
        blocks = self._blocks(_HEADERS + file)
        return None if blocks is None else b"".join(blocks)

    def tensor(self, name: str) -> Iterator[memoryview] | None:
        """As `BaseParts`."""
        return self._blocks(_TENSORS + name)

    def file(self, name: str) -> Iterator[memoryview] | None:
        """As `BaseParts`."""
        return self._blocks(_FILES + name)

    def _blocks(self, key: str) -> Iterator[memoryview] | None:
        entry = self._header.entries.get(key)
        return None if entry is None else iter_range(self._header, entry.begin, entry.end)

    def __str__(self) -> str:
        """Where it lies."""
        return str(self._header.path)


class _Part(NamedTuple):
    """One entry of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    blocks: Iterator[memoryview]


def keep_base_parts(folder: Path, base: Path, written: Sequence[WrittenFile] | None) -> None:
    """Write `alignez/base_tensors.safetensors` into a result, all of whose files at the top are there but the card.

    Args:
        folder: the result.
        base: the base's folder.
        written: what was seen of the weight files; None where nothing of the base is to be kept: then what a killed
            run kept goes.

    Raises:
        BadInputError: a file that cannot be read or written.
    """
    if written is None:
        (folder / BASE_TENSORS_FILE).unlink(missing_ok=True)
        return
    changed = {tensor.name for file in written for tensor in file.tensors}
    result, tensors = open_folder(folder), open_folder(base)
    parts = [*_changed_tensors(result, tensors, changed), *_changed_headers(result, tensors)]
    parts.extend(
        _Part(f"{_FILES}{name}", "U8", (size,), size, _file_blocks(base / name))
        for name in _changed_files(folder, base, frozenset(tensors.files))
        for size in [(base / name).stat().st_size]
    )
    parts.sort(key=lambda part: (-RANK[part.dtype], part.key))
    with new_file(folder / BASE_TENSORS_FILE) as file:
        file.write(_head(parts))
        for part in parts:
            file.writelines(part.blocks)


def bytes_of_base_parts(base: ModelFolder, lowering: Lowering, dtype: str | None) -> int:
    """At most how many bytes `keep_base_parts` will write.

    Args:
        base: the base.
        lowering: what is done to it.
        dtype: of the result's tensors; the stored dtypes where None.
    """
    tensors = base.tensors
    # Another dtype or more room changes nearly all tensors.
    names = set(tensors) if dtype is not None or lowering.home is not base else _edited_names(lowering)
    heads = sum(len(tensors.header(file).header_bytes) for file in tensors.files)
    return sum(tensors.entry(name).nbytes for name in names) + heads


def _edited_names(lowering: Lowering) -> set[str]:
    """The tensors that folds change."""
    slots = [fold.slot for fold in lowering.folds]
    return {name for slot in slots for name in (*slot.weights, slot.bias) if name is not None}


def _changed_tensors(result: TensorFolder, base: TensorFolder, changed: Collection[str]) -> Iterator[_Part]:
    for name in base:
        entry = base.entry(name)
        if name in changed or name not in result or not _alike(result.entry(name), entry):
            yield _Part(_TENSORS + name, entry.dtype, entry.shape, entry.nbytes, base.iter_blocks(name))


def _changed_files(folder: Path, base: Path, weight_files: frozenset[str]) -> Iterator[str]:
    """Files of the base that the result has with other bytes; its model card is kept as `alignez/base_README.md`."""
    for name in files_in(folder):
        if name in weight_files or name == "README.md" or name.startswith(f"{OURS}/") or not (base / name).is_file():
            continue
        if not filecmp.cmp(folder / name, base / name, shallow=False):
            yield name


def _alike(one: TensorEntry, other: TensorEntry) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _changed_headers(result: TensorFolder, base: TensorFolder) -> Iterator[_Part]:
    for file in base.files:
        raw = base.header(file).header_bytes
        if file not in result.files or result.header(file).header_bytes != raw:
            yield _Part(_HEADERS + file, "U8", (len(raw),), len(raw), iter([memoryview(raw)]))


def _head(parts: list[_Part]) -> bytes:
    fields: dict[str, Any] = {}
    offset = 0
    for part in parts:
        end = offset + part.nbytes
        fields[part.key] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _file_blocks(path: Path) -> Iterator[memoryview]:
    """A file's bytes in order, each block its own memory.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                yield memoryview(block)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from error
