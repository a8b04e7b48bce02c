"""The base's files again, made from a result and from the parts of the base that it lacks."""

from __future__ import annotations

import errno
import os
from itertools import chain
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.integrity.hashing import hash_file, new_hasher
from alignez_bake.safetensors_io.new_file import new_file
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alignez_bake.integrity.base_parts import BaseParts
    from alignez_bake.integrity.hashing import Algorithm
    from alignez_bake.integrity.manifest import Manifest
    from alignez_bake.safetensors_io.reader import TensorFolder

RestoredWay = Literal["kept", "rebuilt", "taken"]
"""How a file came back: it is the result's own; with the base's tensors in it; or as a whole from the base."""

_METADATA: Final = "__metadata__"
# What a file system says that makes no hard links, or no more of them.
_CANNOT_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES})


class RestoredFile(NamedTuple):
    """One file of the base.

    Attributes:
        name: in the base.
        hash: what it must have.
        own: name of the result's file that had this hash when it was baked, or None.
    """

    name: str
    hash: str
    own: str | None


def plan_files(result: TensorFolder, manifest: Manifest, parts: BaseParts) -> list[RestoredFile]:
    """The base's files, each of which the result or the parts have something of.

    What the result has is found by its hash, so that the base's model card comes back from `alignez/base_README.md`.

    Args:
        result: the baked model's tensors.
        manifest: of the result.
        parts: of the base.

    Raises:
        BadInputError: a file that neither the result nor the parts hold.
    """
    own = {entry.hash: name for name, entry in manifest.files.items() if (result.path / name).is_file()}
    plan = [
        RestoredFile(name, entry.base_hash, own.get(entry.base_hash))
        for name, entry in manifest.files.items()
        if entry.base_hash is not None
    ]
    for file in plan:
        if file.own is None and file.name not in result.files and parts.file(file.name) is None:
            raise BadInputError(
                f"{file.name} of the base of {result.path} is not in {parts}: name the base that it was made from with "
                "--base BASE"
            )
    return plan


def make_file(
    file: RestoredFile, result: TensorFolder, manifest: Manifest, parts: BaseParts, target: Path
) -> RestoredWay:
    """Make one of the base's files: the first of the ways that gives its hash.

    The result and the base are only read: a kept file is another name of the same bytes, all others are new.

    Args:
        file: of `plan_files`.
        result: the baked model's tensors.
        manifest: of the result.
        parts: of the base.
        target: the file to make; it does not exist.

    Returns:
        How it was made.

    Raises:
        CheckFailedError: no way gives the base's file: something changed since the bake.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.own is not None and hash_file(result.path / file.own, manifest.algorithm)[1] == file.hash:
        _link(result.path / file.own, target)
        return "kept"
    rebuilt = _rebuilt(file.name, result, manifest, parts) if file.name in result.files else None
    ways: tuple[tuple[RestoredWay, Iterator[memoryview] | None], ...] = (
        ("rebuilt", rebuilt),
        ("taken", parts.file(file.name)),
    )
    for way, blocks in ways:
        if blocks is not None and _write(blocks, target, manifest.algorithm) == file.hash:
            return way
    raise CheckFailedError(
        f"{file.name} cannot be restored: neither {result.path} nor {parts} gives a file of the base's hash, so "
        "something changed since the bake; nothing was done, and `alignez-bake verify` says what changed"
    )


def _rebuilt(name: str, result: TensorFolder, manifest: Manifest, parts: BaseParts) -> Iterator[memoryview] | None:
    """The bytes of a weight file: the base's header, and each tensor from where its bytes are the base's.

    Returns:
        The blocks; None where a tensor of the base is in neither.
    """
    head = parts.header(name) or result.header(name).header_bytes
    tensors: list[Iterator[memoryview]] = []
    for tensor, described in _described(head, f"header of {name} in {parts}"):
        own = result.entry(tensor) if tensor in result else None
        same = own is not None and tensor not in manifest.tensors and (own.dtype, list(own.shape)) == described
        blocks = result.iter_blocks(tensor) if same else parts.tensor(tensor)
        if blocks is None:
            return None
        tensors.append(blocks)
    return chain([memoryview(len(head).to_bytes(8, "little") + head)], *tensors)


def _described(head: bytes, place: str) -> list[tuple[str, tuple[object, object]]]:
    """Names with dtype and shape, in the order of the data."""
    fields = parse_object(head, place)
    fields.pop(_METADATA, None)
    found: list[tuple[int, int, str, tuple[object, object]]] = []
    for name, value in fields.items():
        offsets = value.get("data_offsets") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(offsets, list) or [type(n) for n in offsets] != [int, int]:
            raise BadInputError(f"{place}: tensor {shown(name)} is {shown(value)}: the file is damaged")
        found.append((*offsets, name, (value.get("dtype"), value.get("shape"))))
    return [(name, described) for *_, name, described in sorted(found, key=lambda entry: entry[:3])]


def _write(blocks: Iterator[memoryview], target: Path, algorithm: Algorithm) -> str:
    """Write a new file and return its hash."""
    hasher = new_hasher(algorithm)
    with new_file(target) as file:
        for block in blocks:
            hasher.update(block)
            file.write(block)
    return hasher.hexdigest()


def _link(source: Path, target: Path) -> None:
    """Another name for the same file; a copy where the file system has no such."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        with source.open("rb") as read, new_file(target) as written:
            while block := read.read(1 << 23):
                written.write(block)
