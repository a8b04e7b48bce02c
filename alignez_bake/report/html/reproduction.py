"""The commands that make a result again, from its record alone.

A record may be somebody else's, and people copy commands: each word is one of this tool's own, a checked value, or a
name in the quotes of a shell.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from alignez_bake.report.record import PATCHED_GRAPH
from alignez_bake.streaming.rounding_choice import ROUNDINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SWITCHES: Final = {"external_data": "--external-data", "optimise": "--optimize", "link": "--link"}


def commands_of(record: Mapping[str, Any], base: str | None) -> tuple[str, ...]:
    """`bake` with the recorded edits, and `verify`.

    Args:
        record: `alignez/alignez.json` of a result.
        base: the base's name; None where it is not known.
    """
    name = base or "BASE"
    edits = ["--edits", "alignez/edits.safetensors", "--out", "OUT"]
    if record.get("artefact") == PATCHED_GRAPH:
        graph = shlex.join(["alignez-bake", "bake", "--base-onnx", name, *edits])
        return (graph, shlex.join(["alignez-bake", "verify", "OUT"]))
    bake = ["alignez-bake", "bake", "--model", name, *edits, *_flags(record)]
    return (shlex.join(bake), shlex.join(["alignez-bake", "verify", "OUT", "--model", name]))


def _flags(record: Mapping[str, Any]) -> Iterator[str]:
    artefact, dtype, options = record.get("artefact"), record.get("dtype"), record.get("options")
    if _is_word(artefact) and artefact != "checkpoint":
        yield from ("--as", artefact)
    if _is_word(dtype):
        yield from ("--dtype", dtype)
    if artefact == "checkpoint" and _inserts(record.get("decisions")):
        yield "--trust-remote-code"
    asked = options if isinstance(options, dict) else {}
    opset, bits, rounding = (asked.get(name) for name in ("opset", "weight_bits", "rounding"))
    if isinstance(opset, int) and not isinstance(opset, bool):
        yield from ("--opset", str(opset))
    yield from (flag for name, flag in _SWITCHES.items() if asked.get(name) is True)
    if bits in (4, 8):
        yield f"--int{int(bits)}"
    if rounding in ROUNDINGS:
        yield from ("--rounding", str(rounding))


def _is_word(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _inserts(decisions: object) -> bool:
    entries = decisions if isinstance(decisions, list) else []
    return any(isinstance(entry, dict) and entry.get("route") == "insert" for entry in entries)
