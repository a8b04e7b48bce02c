"""A traced graph as files."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

    import onnx_ir
    from transformers import PreTrainedModel

# protobuf ends at 2 GiB a message; the nodes and their names need some of it.
LARGEST_FILE: Final = 2**31 - 2**27
_PACKAGES = ("onnx", "onnxscript")

KEPT_METADATA: Final = frozenset({"pkg.torch.onnx.name_scopes", "pkg.onnxscript.optimizer.folded_from"})
"""Which module a node comes from, and which parameter an initialiser was made of."""


def check_target(target: Path) -> None:
    """Refuse before the long work what would fail after it.

    Raises:
        BadInputError: packages that are missing; a suffix other than `.onnx`, no folder, or a file that is there.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise BadInputError(
            f"ONNX graphs need packages that are not installed ({', '.join(missing)}): pip install 'alignez-bake[onnx]'"
        )
    if target.suffix != ".onnx":
        raise BadInputError(f"a graph's file must end in .onnx: {target}")
    if not target.parent.is_dir():
        raise BadInputError(f"no such folder: {target.parent}")
    for file in (target, data_file(target)):
        if file.exists():
            raise BadInputError(f"{file} exists: choose another place, or remove it")


def data_file(target: Path) -> Path:
    """Where the external data of a graph lie."""
    return target.with_name(f"{target.name}_data")


def needs_external_data(model: PreTrainedModel, *, wanted: bool | None) -> bool:
    """Whether the weights go to a file of their own.

    Args:
        model: whose parameters and buffers become initialisers; shared ones are counted once, as they are stored.
        wanted: what was asked for; None: what the size demands.

    Raises:
        BadInputError: False was asked for, and one file cannot hold them.
    """
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if wanted is False and size > LARGEST_FILE:
        raise BadInputError(
            f"weights of {size} bytes do not fit into one .onnx file, which holds {LARGEST_FILE}: allow external data"
        )
    return size > LARGEST_FILE if wanted is None else wanted


def save_graph(graph: onnx_ir.Model, target: Path, *, external_data: bool) -> None:
    """Write a graph, without what torch says of the machine that traced it.

    torch notes at each node the lines of code it comes from, with their full paths: those would tell of the machine,
    and make the same export other bytes elsewhere. Weights are written one after the other from where they lie.

    Args:
        graph: the model; its metadata are cut down in place.
        target: the `.onnx` file.
        external_data: whether weights go to `data_file(target)`.
    """
    import onnx_ir  # noqa: PLC0415 - comes with an extra

    for owner in (graph, graph.graph, *graph.graph.all_nodes()):
        _cut_metadata(owner.metadata_props)
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        _cut_metadata(value.metadata_props)
    for node in graph.graph.all_nodes():
        for value in node.outputs:
            _cut_metadata(value.metadata_props)
    onnx_ir.save(graph, target, external_data=data_file(target).name if external_data else None)


def _cut_metadata(properties: MutableMapping[str, str]) -> None:
    for key in set(properties) - KEPT_METADATA:
        del properties[key]
