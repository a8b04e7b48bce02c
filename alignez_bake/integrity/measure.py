"""The manifest of a folder that was just written: what the writer knows already, and the rest by reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.exporters.output_folder import OURS
from alignez_bake.integrity.folder_files import files_in
from alignez_bake.integrity.hashing import DEFAULT, hash_file
from alignez_bake.integrity.manifest import FileHashes, Manifest, TensorHashes
from alignez_bake.progress import NoProgress
from alignez_bake.streaming.journal import JOURNAL_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignez_bake.integrity.hashing import Algorithm
    from alignez_bake.progress import Progress
    from alignez_bake.streaming.written import Way, WrittenFile


def manifest_of(
    folder: Path,
    base: Path | None,
    *,
    known: Manifest | None = None,
    ways: Mapping[str, Way] | None = None,
    algorithm: Algorithm = DEFAULT,
    progress: Progress | None = None,
) -> Manifest:
    """The manifest of all files of a folder, but for the manifest itself.

    Args:
        folder: the result that is being written.
        base: the base's folder; None where there is none.
        known: entries of files and tensors that were hashed while they were written: taken as they are.
        ways: how files came that share the base's blocks, by name.
        algorithm: that of `known`, if it is given.
        progress: counts files.

    Raises:
        BadInputError: a file that cannot be read.
        ValueError: `known` has another algorithm, or an entry of a file that is not there or has another size.
    """
    known = known or Manifest(algorithm=algorithm)
    if known.algorithm != algorithm:
        raise ValueError(f"known hashes are {known.algorithm}, asked for is {algorithm}")
    # The journal goes when the result takes its place.
    names = [name for name in files_in(folder) if name != f"{OURS}/{JOURNAL_FILE}"]
    for name, entry in known.files.items():
        if name not in names or (folder / name).stat().st_size != entry.size:
            raise ValueError(f"{folder / name} is not as its entry says: {entry.size} bytes")
    files = {}
    with (progress or NoProgress()).task("hashing files", len(names)) as advance:
        for name in names:
            files[name] = known.files.get(name) or _measured(folder, base, name, (ways or {}).get(name), algorithm)
            advance()
    return Manifest(files, dict(known.tensors), algorithm)


def manifest_of_weights(written: Sequence[WrittenFile], *, algorithm: Algorithm = DEFAULT) -> Manifest:
    """The entries of weight files and of edited and added tensors, as they were hashed while they were written.

    Args:
        written: what the stream saw.
        algorithm: of the hashes.
    """
    files = {file.name: FileHashes(file.size, file.hash, file.base_hash, file.way) for file in written}
    tensors = {
        tensor.name: TensorHashes(file.name, tensor.hash, tensor.base_hash, tensor.rounding)
        for file in written
        for tensor in file.tensors
    }
    return Manifest(files, tensors, algorithm)


def _measured(folder: Path, base: Path | None, name: str, way: Way | None, algorithm: Algorithm) -> FileHashes:
    path = folder / name
    size, whole = hash_file(path, algorithm)
    # What lies in the base's `alignez/` is the record of another bake.
    of_base = None if base is None or name.split("/", maxsplit=1)[0] == OURS else base / name
    if of_base is None or not of_base.is_file():
        return FileHashes(size, whole, None, "written")
    base_hash = whole if path.samefile(of_base) else hash_file(of_base, algorithm)[1]
    return FileHashes(size, whole, base_hash, way or ("copied" if whole == base_hash else "written"))
