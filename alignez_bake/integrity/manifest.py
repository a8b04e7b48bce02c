"""`alignez/manifest.json`: a hash of every file of a result and of every edited tensor, and of the base's.

The manifest is of all files but itself, so it is written last.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from alignez_bake.errors import BadInputError
from alignez_bake.integrity.folder_files import MANIFEST_FILE
from alignez_bake.integrity.hashing import ALGORITHMS, DEFAULT, HEX_DIGITS, Algorithm
from alignez_bake.lowering.rounding import Rounding
from alignez_bake.safetensors_io.new_file import new_file
from alignez_bake.safetensors_io.strict_json import parse_object, shown
from alignez_bake.streaming.written import Way

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT: Final = 1
_MAX_BYTES: Final = 256 * 1024 * 1024
_TOP_KEYS: Final = frozenset({"format", "algorithm", "files", "tensors"})
_FILE_KEYS: Final = frozenset({"size", "hash", "base_hash", "way"})
_TENSOR_KEYS: Final = frozenset({"file", "hash", "base_hash", "rounding"})
_DIGITS: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class FileHashes:
    """One file of a result.

    Attributes:
        size: in bytes.
        hash: of its bytes.
        base_hash: of the base's file of the same name; None where the base has none, and for all of `alignez/`.
        way: how it came: written anew, copied from the base, or sharing the base's blocks.
    """

    size: int
    hash: str
    base_hash: str | None
    way: Way


@dataclass(frozen=True)
class TensorHashes:
    """One tensor that is not the base's, byte for byte.

    Attributes:
        file: where it lies.
        hash: of its bytes as they are stored.
        base_hash: of the stored bytes of the base's tensor of this name; None where the base has none, or has it in
            another shape.
        rounding: how the exact values became the stored ones.
    """

    file: str
    hash: str
    base_hash: str | None
    rounding: Rounding


@dataclass(frozen=True)
class Manifest:
    """What `alignez/manifest.json` says; also a part of it, for what is known while files are written.

    Attributes:
        files: by name, with `/` between folders; all but the manifest itself.
        tensors: by name; those that were edited or added.
        algorithm: of all hashes.
    """

    files: Mapping[str, FileHashes] = field(default_factory=dict)
    tensors: Mapping[str, TensorHashes] = field(default_factory=dict)
    algorithm: Algorithm = DEFAULT


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a result folder; the same one gives the same bytes.

    Raises:
        BadInputError: it cannot be written, or a file's name is no text.
    """
    value = {
        "format": FORMAT,
        "algorithm": manifest.algorithm,
        "files": {name: asdict(manifest.files[name]) for name in sorted(manifest.files)},
        "tensors": {name: asdict(manifest.tensors[name]) for name in sorted(manifest.tensors)},
    }
    try:
        data = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInputError(
            f"{folder} holds a file whose name is not UTF-8 ({shown(error.object[error.start :][:40])}), which no JSON "
            "can name: rename it in the base"
        ) from error
    with new_file(folder / MANIFEST_FILE) as file:
        file.write(data)


def has_manifest(folder: Path) -> bool:
    """Whether a result has a manifest: those of earlier versions have none."""
    return (folder / MANIFEST_FILE).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a result folder; nothing in it is trusted.

    Raises:
        BadInputError: absent, no JSON, another format, unknown keys, names that leave the folder, or values that are
            no sizes, hashes or ways.
    """
    path = folder / MANIFEST_FILE
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise BadInputError(f"{path} has {size} bytes: at most {_MAX_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return _parsed(parse_object(data, str(path)), str(path))


def _parsed(value: dict[str, Any], place: str) -> Manifest:
    if value.get("format") != FORMAT or isinstance(value["format"], bool):
        raise BadInputError(
            f"{place} has format {shown(value.get('format'))}: this version reads {FORMAT}; use the version of "
            "alignez-bake that wrote it"
        )
    _check_keys(value, _TOP_KEYS, place)
    if value["algorithm"] not in ALGORITHMS:
        raise BadInputError(f"{place} has algorithm {shown(value['algorithm'])}: known are {', '.join(ALGORITHMS)}")
    for key in ("files", "tensors"):
        if not isinstance(value[key], dict):
            raise BadInputError(f"{place}: {key} is {shown(value[key])}: it must be an object")
    files = {name: _file(name, entry, f"{place}: file {shown(name)}") for name, entry in value["files"].items()}
    tensors = {
        name: _tensor(entry, files, f"{place}: tensor {shown(name)}") for name, entry in value["tensors"].items()
    }
    return Manifest(files, tensors, cast("Algorithm", value["algorithm"]))


def _file(name: str, value: object, where: str) -> FileHashes:
    if not _stays_inside(name) or name == MANIFEST_FILE:
        raise BadInputError(f"{where}: the name must be that of a file inside of the folder, other than the manifest")
    entry = _check_keys(value, _FILE_KEYS, where)
    if type(entry["size"]) is not int or entry["size"] < 0:
        raise BadInputError(f"{where} has size {shown(entry['size'])}: it must be an integer, not negative")
    return FileHashes(
        entry["size"],
        _hash(entry, where),
        _base_hash(entry, where),
        cast("Way", _one_of(entry, "way", get_args(Way), where)),
    )


def _tensor(value: object, files: Mapping[str, FileHashes], where: str) -> TensorHashes:
    entry = _check_keys(value, _TENSOR_KEYS, where)
    return TensorHashes(
        _one_of(entry, "file", files, where),
        _hash(entry, where),
        _base_hash(entry, where),
        cast("Rounding", _one_of(entry, "rounding", get_args(Rounding), where)),
    )


def _check_keys(value: object, keys: frozenset[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != keys:
        found = sorted(value) if isinstance(value, dict) else value
        raise BadInputError(f"{where} has {shown(found)}: it needs {', '.join(sorted(keys))}, and nothing else")
    return value


def _hash(entry: Mapping[str, Any], where: str, key: str = "hash") -> str:
    value = entry[key]
    if not isinstance(value, str) or len(value) != HEX_DIGITS or not _DIGITS.issuperset(value):
        raise BadInputError(f"{where} has {key} {shown(value)}: it must be {HEX_DIGITS} lower-case hexadecimal digits")
    return value


def _base_hash(entry: Mapping[str, Any], where: str) -> str | None:
    return None if entry["base_hash"] is None else _hash(entry, where, "base_hash")


def _one_of(entry: Mapping[str, Any], key: str, known: Mapping[str, Any] | tuple[str, ...], where: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or value not in known:
        among = ", ".join(known) if isinstance(known, tuple) else "one of its files"
        raise BadInputError(f"{where} has {key} {shown(value)}: it must be {among}")
    return value


def _stays_inside(name: str) -> bool:
    """Whether a name is the plain way to a file below the folder."""
    return "\0" not in name and not {"", ".", ".."}.intersection(name.split("/"))
