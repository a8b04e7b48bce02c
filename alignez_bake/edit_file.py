"""`edits.safetensors`, format 1: an edit plan as a file that others can write and nobody has to trust.

Tensors, float32 or float64: `edits.{i}.left` [d_out, k], `edits.{i}.right` [d_r, k], `edits.{i}.offset` [k],
`edits.{i}.bias` [d_out]; offset and bias are optional, a pure shift has bias alone. The header's `__metadata__`
has one key, `alignez`, whose value is one JSON string with `format`, `base`, `edits`, and optionally `weights`
and `provenance`. Entry i of `edits` belongs to the tensors `edits.{i}.*`; their order is the order of application.
docs/edit_file.md describes the format for those who write it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import BaseFingerprint, EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.immutable_arrays import immutable
from alignez_bake.safetensors_io.file_access import check_unchanged, read_tensor
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.mapped import MappedFile, map_tensors
from alignez_bake.safetensors_io.strict_json import parse_object, shown
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from alignez_bake.safetensors_io.header import Header

FORMAT_VERSION: Final = 1
METADATA_KEY: Final = "alignez"
# One edit at each of nine sites of a thousand layers, for ten objectives: nobody needs more.
MAX_EDITS: Final = 100_000
# Files from this size on are mapped instead of read; docs/decisions/streaming_memory.md says why not all of them.
MAPPED_FROM_BYTES: Final = 1024 * 1024

_PARTS: Final = ("left", "right", "offset", "bias")
_ENTRY_KEYS: Final = ("site", "reads", "gate", "positions", "strength")
_TENSOR_NAME: Final = re.compile(r"edits\.(0|[1-9][0-9]{0,8})\.(left|right|offset|bias)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def write_edits(plan: EditPlan, path: str | Path) -> None:
    """Write a plan to a file, whole or not at all; the same plan gives the same bytes.

    Raises:
        BadInputError: the plan has no edits, or its provenance is no JSON.
    """
    if not plan.edits:
        raise BadInputError("there are no edits to write")
    tensors: dict[str, NDArray[Any]] = {}
    entries = []
    for index, edit in enumerate(plan.edits):
        tensors.update(
            {f"edits.{index}.{part}": array for part in _PARTS if (array := getattr(edit, part)) is not None}
        )
        site = {"kind": edit.site.kind} | ({} if edit.site.layer is None else {"layer": edit.site.layer})
        entry: dict[str, Any] = {"site": site} | {name: getattr(edit, name) for name in _ENTRY_KEYS[1:]}
        entries.append(entry | ({} if edit.objective is None else {"objective": edit.objective}))
    document: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "base": None if plan.base is None else asdict(plan.base),
        "edits": entries,
    }
    if plan.weights:
        document["weights"] = dict(plan.weights)
    document["provenance"] = dict(plan.provenance)
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"the provenance of the edits cannot be written as JSON: {error}") from None
    write_tensors(path, tensors, {METADATA_KEY: text})


def read_edits(path: str | Path) -> EditPlan:
    """Read a plan, trusting nothing of the file.

    The arrays of a file of 1 MiB and more lie over the file itself and take no memory of the process's own: it may be
    replaced or deleted while the plan is in use, but must not be written into, which `EditPlan.check_files` notices, or
    cut short, which ends the process at the next use of what is gone.

    Raises:
        BadInputError: no such file, a damaged or foreign file, an unknown version, key or value, tensors
            and entries that do not belong together, shapes and ranks that disagree, values not finite, or a file that
            changes while it is read.
    """
    path = Path(path)
    header = read_header(path)
    document = _parse_document(header, path)
    entries = document["edits"]
    places: dict[str, tuple[int, str]] = {}
    for name, tensor in header.entries.items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            raise BadInputError(f"{path}: tensor {shown(name)} is not of the form edits.<i>.<{'|'.join(_PARTS)}>")
        index = int(match[1])
        if index >= len(entries):
            raise BadInputError(f"{path}: tensor {shown(name)} belongs to no entry: there are {len(entries)} edits")
        if tensor.dtype not in ("F32", "F64"):
            raise BadInputError(f"{path}: tensor {shown(name)} has dtype {tensor.dtype}: use F32 or F64")
        if not tensor.nbytes:  # beside a zero, the other dimension could be any number, and the file stay small
            raise BadInputError(f"{path}: tensor {shown(name)} has shape {tensor.shape}: width and rank 0 are no edit")
        places[name] = (index, match[2])
    tensors: dict[int, dict[str, NDArray[np.floating[Any]]]] = {}
    is_mapped = header.data_bytes >= MAPPED_FROM_BYTES
    for name, array in _arrays(header, mapped=is_mapped):
        index, part = places[name]
        tensors.setdefault(index, {})[part] = array
    edits = tuple(_edit(entry, tensors.get(index, {}), f"{path}: edit {index}") for index, entry in enumerate(entries))
    check_unchanged(header)  # what was found to be finite is what lies there
    try:
        return EditPlan(
            edits=edits,
            weights={
                name: _as_float(weight, f"weight of {shown(name)}")
                for name, weight in document.get("weights", {}).items()
            },
            base=_base(document.get("base")),
            provenance=document.get("provenance", {}),
            mapped=(MappedFile(path, header.identity),) if is_mapped else (),
        )
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None


def _arrays(header: Header, *, mapped: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor by name, immutable, so that its edit keeps it as it is."""
    if mapped:
        yield from map_tensors(header).items()
    else:
        for name, tensor in header.entries.items():
            yield name, immutable(read_tensor(header, tensor))


def _parse_document(header: Header, path: Path) -> dict[str, Any]:
    if set(header.metadata) != {METADATA_KEY}:
        found = shown(list(header.metadata)) if header.metadata else "none"
        raise BadInputError(
            f"{path} is no edit file: its metadata must have the key {METADATA_KEY!r} alone, has {found}"
        )

    document = parse_object(header.metadata[METADATA_KEY].encode("utf-8"), f"{path}: metadata {METADATA_KEY!r}")
    _check_keys(document, required=("format", "edits"), optional=("base", "weights", "provenance"), place=str(path))
    version = document["format"]
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise BadInputError(f"{path} has format {shown(version)}: this version reads format {FORMAT_VERSION}")
    entries = document["edits"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_EDITS:
        raise BadInputError(f"{path}: 'edits' must be a JSON array of 1 to {MAX_EDITS} entries")
    for name in ("weights", "provenance"):
        if not isinstance(document.get(name, {}), dict):
            raise BadInputError(f"{path}: {name!r} must be a JSON object")
    return document


def _check_keys(value: object, *, required: Collection[str], optional: Collection[str], place: str) -> None:
    if not isinstance(value, dict):
        raise BadInputError(f"{place}: expected a JSON object, found {type(value).__name__}")
    if missing := [key for key in required if key not in value]:
        raise BadInputError(f"{place}: the key {missing[0]!r} is missing")
    if unknown := [key for key in value if key not in required and key not in optional]:
        raise BadInputError(f"{place}: the key {shown(unknown[0])} is unknown")


def _edit(entry: object, tensors: Mapping[str, NDArray[np.floating[Any]]], place: str) -> Edit:
    _check_keys(entry, required=_ENTRY_KEYS, optional=("objective",), place=place)
    assert isinstance(entry, dict)
    _check_keys(entry["site"], required=("kind",), optional=("layer",), place=f"{place}: site")
    try:
        return Edit(
            site=Site(entry["site"]["kind"], entry["site"].get("layer")),
            left=tensors.get("left"),
            right=tensors.get("right"),
            offset=tensors.get("offset"),
            bias=tensors.get("bias"),
            reads=entry["reads"],
            gate=entry["gate"],
            positions=entry["positions"],
            strength=_as_float(entry["strength"], "strength"),
            objective=_printable(entry.get("objective")),
        )
    except BadInputError as error:
        raise BadInputError(f"{place}: {error}") from None
    except (TypeError, OverflowError) as error:
        raise BadInputError(f"{place} holds a value of the wrong type: {error}") from None


def _as_float(value: Any, what: str) -> Any:  # noqa: ANN401 - a JSON value, which the plan judges
    """A whole number as a float, which JSON does not tell apart; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    try:
        return float(value)
    except OverflowError:
        raise BadInputError(f"{what} is {shown(value)}: it must be a finite number") from None


def _printable(objective: Any) -> Any:  # noqa: ANN401 - a JSON value, which the edit judges
    """The name of an objective, which stands in tables and messages."""
    if isinstance(objective, str) and not objective.isprintable():
        raise BadInputError(f"objective {shown(objective)} is not printable: give it another name")
    return objective


def _base(value: object) -> BaseFingerprint | None:
    if value is None:
        return None
    names = ("model_type", "config_sha256", "tensors_sha256")
    _check_keys(value, required=names, optional=(), place="base")
    assert isinstance(value, dict)
    for name in names:
        text = value[name]
        if not isinstance(text, str) or (name != "model_type" and not _SHA256.fullmatch(text)):
            expected = "a string" if name == "model_type" else "64 hexadecimal digits"
            raise BadInputError(f"base.{name} is {shown(text)}: it must be {expected}")
    return BaseFingerprint(**value)
