"""alignez-bake: a pretrained language model aligns itself, and the result is an ordinary model.

The record of an edit, and one function for each command, of the same name (`align` is the command without a name, and
`bake_onnx` is `bake --base-onnx`, and `evaluate` is `eval`, which is a builtin).
Names are resolved when they are first used, so importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignez_bake.commands.align import align as align
    from alignez_bake.commands.bake import bake as bake
    from alignez_bake.commands.bake_onnx import bake_onnx as bake_onnx
    from alignez_bake.commands.compare import compare as compare
    from alignez_bake.commands.evaluate import evaluate as evaluate
    from alignez_bake.commands.explain import explain as explain
    from alignez_bake.commands.fit import fit as fit
    from alignez_bake.commands.inspect import inspect as inspect
    from alignez_bake.commands.pairs import pairs as pairs
    from alignez_bake.commands.push import push as push
    from alignez_bake.commands.restore import restore as restore
    from alignez_bake.commands.verify import verify as verify
    from alignez_bake.edit import Edit as Edit
    from alignez_bake.edit_file import read_edits as read_edits
    from alignez_bake.edit_file import write_edits as write_edits
    from alignez_bake.edit_plan import EditPlan as EditPlan
    from alignez_bake.site import Site as Site

__version__ = "0.1.0"

_PLACES = {
    **{
        name: f"commands.{name}"
        for name in [
            *("align", "bake", "bake_onnx", "compare", "evaluate", "explain", "fit"),
            *("inspect", "pairs", "push", "restore", "verify"),
        ]
    },
    "Edit": "edit",
    "EditPlan": "edit_plan",
    "Site": "site",
    "read_edits": "edit_file",
    "write_edits": "edit_file",
}
__all__ = [
    "Edit",
    "EditPlan",
    "Site",
    "align",
    "bake",
    "bake_onnx",
    "compare",
    "evaluate",
    "explain",
    "fit",
    "inspect",
    "pairs",
    "push",
    "read_edits",
    "restore",
    "verify",
    "write_edits",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """A public name, imported when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
