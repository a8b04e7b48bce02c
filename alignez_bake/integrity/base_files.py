"""The base's files again, made from a result and from the parts of the base that it lacks."""

from __future__ import annotations

import errno
import os
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
    """One file of the base, and how it is made.

    Attributes:
        name: in the base.
        hash: what it must have.
        way: see `RestoredWay`.
        source: of a kept file its name in the result.
    """

    name: str
    hash: str
    way: RestoredWay
    source: str


def plan_files(result: TensorFolder, manifest: Manifest, parts: BaseParts) -> list[RestoredFile]:
    """How each of the base's files is made.

    A kept file is found by its hash, so that the base's model card comes back from `alignez/base_README.md`.

    Args:
        result: the baked model's tensors.
        manifest: of the result.
        parts: of the base.

    Raises:
        BadInputError: a file that neither the result nor the parts hold.
    """
    own = {entry.hash: name for name, entry in reversed(manifest.files.items())}
    plan: list[RestoredFile] = []
    for name, entry in manifest.files.items():
        wanted = entry.base_hash
        if wanted is None:
            continue
        way: RestoredWay
        if wanted in own:
            way = "kept"
        elif name in result.files:
            way = "rebuilt"
        elif parts.file(name) is not None:
            way = "taken"
        else:
            raise BadInputError(
                f"{name} of the base of {result.path} is not in {parts}: name the base that it was made from with "
                "--base BASE"
            )
        plan.append(RestoredFile(name, wanted, way, own.get(wanted, name)))
    return plan


def make_file(file: RestoredFile, result: TensorFolder, manifest: Manifest, parts: BaseParts, target: Path) -> None:
    """Make one of the base's files, and prove it by its hash.

    The result and the base are only read: a kept file is another name of the same bytes, all others are new.

    Args:
        file: of `plan_files`.
        result: the baked model's tensors.
        manifest: of the result.
        parts: of the base.
        target: the file to make; it does not exist.

    Raises:
        BadInputError: a part that is not there.
        CheckFailedError: what was made is not the base's file: result or base changed since the bake.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.way == "kept":
        found = hash_file(result.path / file.source, manifest.algorithm)[1]
        _check(file, found, result.path / file.source)
        _link(result.path / file.source, target)
        return
    blocks = parts.file(file.name) if file.way == "taken" else _rebuilt(file.name, result, manifest, parts)
    assert blocks is not None
    _check(file, _write(blocks, target, manifest.algorithm), f"{result.path} and {parts}")


def _check(file: RestoredFile, found: str, source: object) -> None:
    if found != file.hash:
        raise CheckFailedError(
            f"{file.name} from {source} is not the base's, by its hash: something changed since the bake, and nothing "
            "was restored; `alignez-bake verify` says what"
        )


def _rebuilt(name: str, result: TensorFolder, manifest: Manifest, parts: BaseParts) -> Iterator[memoryview]:
    """The bytes of a weight file: the base's header, and each tensor from where its bytes are the base's."""
    head = parts.header(name) or result.header(name).header_bytes
    yield memoryview(len(head).to_bytes(8, "little") + head)
    for tensor, described in _described(head, f"header of {name} in {parts}"):
        own = result.entry(tensor) if tensor in result else None
        if own is not None and tensor not in manifest.tensors and (own.dtype, list(own.shape)) == described:
            yield from result.iter_blocks(tensor)
            continue
        blocks = parts.tensor(tensor)
        if blocks is None:
            raise BadInputError(
                f"{parts} has no tensor {shown(tensor)}, which {name} of the base had: name the base that the result "
                "was made from with --base BASE"
            )
        yield from blocks


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
