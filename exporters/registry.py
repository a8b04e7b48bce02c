"""The exporters by the name that `--as` uses: our own, and those that other packages bring.

Ours stand here by name. Another package declares an entry point of the group `alignez_bake.exporters`. Whichever is
asked for is imported then, and nothing else: `--as checkpoint` needs no package of the others.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.metadata import EntryPoint

    from alignez_bake.exporters.protocol import Exporter

    from alignez_bake.edit import Edit
    from alignez_bake.lowering.slot import Slot

EXPORTERS: Final[Mapping[str, str]] = {
    "checkpoint": "alignez_bake.exporters.checkpoint:CheckpointExporter",
    "adapter": "alignez_bake.exporters.adapter:AdapterExporter",
    "gguf": "alignez_bake.exporters.gguf:GgufExporter",
    "onnx": "alignez_bake.exporters.onnx:OnnxExporter",
    "onnx-genai": "alignez_bake.exporters.onnx_genai:OnnxGenaiExporter",
    "edits": "alignez_bake.exporters.edits:EditsExporter",
}
DEFAULT_EXPORTER: Final = "checkpoint"
ENTRY_POINT_GROUP: Final = "alignez_bake.exporters"

_OUR_DISTRIBUTION: Final = "alignez-bake"
# The members of `protocol.Exporter`, which tests/exporters/test_registry.py compares with it.
_VALUES: Final[Mapping[str, type]] = {
    "name": str,
    "routes": frozenset,
    "exactness": str,
    "cost": str,
    "card_library": str,
    "highest_level": str,
    "default_level": str,
    "options": frozenset,
    "inserts_need_code": bool,
    "streams": bool,
    "reads_fp8": bool,
}
_METHODS: Final = ("supports", "check", "bytes_needed", "export", "certify_tensors", "reload")


def known_exporters() -> tuple[str, ...]:
    """The names that `--as` takes: ours, then those of other packages, sorted. None of them is imported."""
    others = sorted({entry.name for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)} - set(EXPORTERS))
    return (*EXPORTERS, *others)


def exporter_named(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        BadInputError: there is none, two packages claim the name, or the one that
            brings it cannot be imported or is no exporter.
    """
    others = list(metadata.entry_points(group=ENTRY_POINT_GROUP, name=name))
    owners = ([_OUR_DISTRIBUTION] if name in EXPORTERS else []) + [_distribution(entry) for entry in others]
    if len(owners) > 1:
        raise BadInputError(
            f"--as {name!r} is claimed by {len(owners)} packages, {' and '.join(owners)}: uninstall all but one"
        )
    if name in EXPORTERS:
        module, _, attribute = EXPORTERS[name].partition(":")
        exporter: Exporter = getattr(importlib.import_module(module), attribute)()
        return exporter
    if others:
        return _foreign(others[0])
    known = ", ".join(known_exporters())
    raise BadInputError(f"--as {name!r} is unknown: use one of {known}")


def formats_that_carry(edit: Edit, slot: Slot) -> tuple[str, ...]:
    """What to bake as instead, where an artefact refuses an edit.

    Args:
        edit: the edit.
        slot: what computes the output of its site.

    Returns:
        Values of `--as`, in order of `known_exporters`; those with `--trust-remote-code` need an inserted module.
    """
    found = []
    for name in known_exporters():
        try:
            exporter = exporter_named(name)
        except BadInputError:
            continue  # another package is broken; the one who asks for it by name is told
        if exporter.supports(edit, slot) is None:
            found.append(name)
        elif "insert" in exporter.routes:
            found.append(f"{name} --trust-remote-code" if exporter.inserts_need_code else name)
    return tuple(found)


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else f"the package of {entry.value}"


def _foreign(entry: EntryPoint) -> Exporter:
    """The exporter of another package, looked at before it is trusted to be one."""
    place = f"the exporter {entry.name!r} of {_distribution(entry)} ({entry.value})"
    try:
        exporter: Exporter = entry.load()()
    except Exception as error:  # foreign code may raise anything; who asked for it is told
        raise BadInputError(f"{place} cannot be loaded: {type(error).__name__}: {error}") from error
    wrong = [name for name, kind in _VALUES.items() if not isinstance(getattr(exporter, name, None), kind)]
    wrong += [name for name in _METHODS if not callable(getattr(exporter, name, None))]
    if wrong:
        raise BadInputError(f"{place} is no exporter: it lacks {', '.join(wrong)}; see docs/exporters.md")
    if exporter.name != entry.name:
        raise BadInputError(f"{place} calls itself {exporter.name!r}: its entry point must have the same name")
    return exporter
