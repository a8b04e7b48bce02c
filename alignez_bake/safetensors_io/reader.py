"""The tensors of a model folder, read one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES, iter_range, open_data, read_into, read_tensor
from alignez_bake.safetensors_io.folder_layout import INDEX_FILE, model_files
from alignez_bake.safetensors_io.header import Header, TensorEntry, read_header
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray


class TensorFolder:
    """The tensors of one model folder; made by `open_folder`.

    Headers are in memory, data is read when asked for. No file stays open between calls, so there is nothing to
    close, and any number of threads may read at once.

    Attributes:
        path: the folder.
        files: names of the files that hold tensors, in order.
        index: path of the index file; None for a single file.
    """

    def __init__(self, path: Path, headers: Mapping[str, Header], index: Path | None) -> None:
        """Take headers that `open_folder` has checked against each other."""
        self.path = path
        self.files: tuple[str, ...] = tuple(headers)
        self.index = index
        self._headers = dict(headers)
        self._file_of = {name: file for file, header in headers.items() for name in header.entries}

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        """Names of all tensors, sorted."""
        return iter(self.names())

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._file_of)

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._file_of)

    def file_of(self, name: str) -> str:
        """Name of the file that holds a tensor.

        Raises:
            BadInputError: no tensor of this name.
        """
        file = self._file_of.get(name)
        if file is None:
            raise BadInputError(
                f"{self.path} has no tensor {shown(name)} among its {len(self._file_of)}: check that edits and base "
                "belong together"
            )
        return file

    def place_of(self, name: str) -> Path:
        """Path of the file that holds a tensor.

        Raises:
            BadInputError: no tensor of this name.
        """
        return self.path / self.file_of(name)

    def header(self, file: str) -> Header:
        """The header of one of `files`.

        Raises:
            KeyError: not one of them.
        """
        return self._headers[file]

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and place of a tensor.

        Raises:
            BadInputError: no tensor of this name.
        """
        return self._headers[self.file_of(name)].entries[name]

    def read(self, name: str) -> NDArray[Any]:
        """A tensor as a fresh, writable array of its stored dtype and shape.

        Raises:
            BadInputError: no such tensor, values packed below one byte, or the file changed meanwhile.
        """
        return read_tensor(self._headers[self.file_of(name)], self.entry(name))

    def read_rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Rows [first, end) of a tensor, seen as [product of its leading dimensions, its last one].

        Returns:
            A fresh, writable array [end - first, columns] of the stored dtype; a tensor without dimensions is one row.

        Raises:
            BadInputError: no such tensor, values packed below one byte, or the file changed meanwhile.
            ValueError: there are not so many rows.
        """
        entry = self.entry(name)
        rows, columns = entry.rows_and_columns
        if not 0 <= first <= end <= rows:
            raise ValueError(f"rows [{first}, {end}) are not in tensor {shown(name)} of {rows} rows")
        part = TensorEntry(
            name,
            entry.dtype,
            (end - first, columns),
            entry.begin + (entry.nbytes // max(rows, 1)) * first,
            entry.begin + (entry.nbytes // max(rows, 1)) * end,
        )
        return read_tensor(self._headers[self.file_of(name)], part)

    def read_bytes_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a tensor's data, as they lie in the file.

        Raises:
            BadInputError: no such tensor, or the file changed meanwhile.
            ValueError: the range leaves the tensor.
        """
        entry = self.entry(name)
        if not 0 <= start <= stop <= entry.nbytes:
            raise ValueError(f"bytes [{start}, {stop}) are not in tensor {shown(name)} of {entry.nbytes} bytes")
        header = self._headers[self.file_of(name)]
        buffer = bytearray(stop - start)
        with open_data(header) as file:
            read_into(file, header, entry.begin + start, memoryview(buffer))
        return bytes(buffer)

    def iter_blocks(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
        """A tensor's bytes in order, in blocks of at most `max_bytes`; none for an empty tensor.

        Two tensors of equal size give blocks of equal sizes, so a streaming comparison is a `zip(strict=True)`.

        Raises:
            BadInputError: no such tensor, or the file changed meanwhile.
            ValueError: `max_bytes` below 1.
        """
        entry = self.entry(name)
        return iter_range(self._headers[self.file_of(name)], entry.begin, entry.end, max_bytes)


def open_folder(path: str | Path) -> TensorFolder:
    """Read and check the headers of a model folder.

    The folder holds `model.safetensors`, or `model.safetensors.index.json` and its shards. Where both lie there,
    the single file wins and the index is not looked at: that is what transformers does. Other `.safetensors`
    files beside them are passed over. The index's `total_size` is not relied upon.

    Raises:
        BadInputError: no model in the folder (the message says what was found), a damaged file, a symlink that
            leaves the folder (other than the hub cache's own), or an index that contradicts the shards.
    """
    folder = Path(path)
    try:
        files, weight_map = model_files(folder)
    except OSError as error:
        raise BadInputError(
            f"{folder}: cannot be read ({error.strerror or error}): check names and permissions"
        ) from error
    headers = {file: read_header(folder / file) for file in files}
    if weight_map is None:
        return TensorFolder(folder, headers, None)
    index = folder / INDEX_FILE
    _check_agreement(headers, weight_map, index)
    return TensorFolder(folder, headers, index)


def _check_agreement(headers: Mapping[str, Header], weight_map: Mapping[str, str], index: Path) -> None:
    """Index and shards must name the same tensors in the same files."""
    found: dict[str, str] = {}
    for file, header in headers.items():
        for name in header.entries:
            if name in found:
                raise BadInputError(
                    f"{index.parent}: tensor {shown(name)} lies in two files, {found[name]} and {file}: "
                    "save the model anew"
                )
            found[name] = file
            listed = weight_map.get(name)
            if listed != file:
                says = "does not list it" if listed is None else f"says {listed}"
                raise BadInputError(
                    f"{index}: tensor {shown(name)} lies in {file}, but the index {says}: "
                    "download or save the model anew"
                )
    for name, file in weight_map.items():
        if name not in found:
            raise BadInputError(
                f"{index}: tensor {shown(name)} should lie in {file}, but is not there: download or save the model anew"
            )
