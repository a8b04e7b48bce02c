"""Opening a graph: everything that can be known before the first token is checked here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.external_data import check_external_data
from alignez_bake.runtime.graph_file import read_graph_file
from alignez_bake.runtime.providers import (
    KINDS,
    asked_providers,
    check_placement,
    check_started,
    read_placement,
    runtime_errors,
    runtime_package,
)
from alignez_bake.runtime.signature import check_agreement, read_signature
from alignez_bake.runtime.value_info import TYPE_NAMES, session_argument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.runtime.graph_file import GraphFile
    from alignez_bake.runtime.providers import Placement, Provider
    from alignez_bake.runtime.signature import Signature


@dataclass(frozen=True)
class OnnxModel:
    """A causal graph with a cache, ready to run.

    Attributes:
        path: the `.onnx` file.
        session: ONNX Runtime's `InferenceSession`, which has no stubs.
        signature: what it takes and gives.
        provider: the first that was asked for; the cache lies in its memory.
        placement: how many nodes run where, None where this ONNX Runtime cannot say.
    """

    path: Path
    session: Any
    signature: Signature
    provider: Provider
    placement: Placement | None


def open_session(model: Path, providers: Sequence[str]) -> OnnxModel:
    """Open a graph on the providers that are named, and on nothing else.

    Args:
        model: a `.onnx` file, or a folder with one.
        providers: in order of preference: "cpu", "cuda", "cuda:1", "tensorrt". Without "cpu" at the end every
            node must find a place on the others. CUDA has no kernel for some nodes that compute shapes, so most
            graphs want ["cuda", "cpu"]; `placement` then says how many run on the CPU, and which.

    Returns:
        The model.

    Raises:
        BadInputError: ONNX Runtime or a provider is missing, would fall back, or cannot run the graph; the file
            or its external data are missing, cut short or out of the folder; old opset; no cache; unknown names.
    """
    runtime = runtime_package()
    asked = asked_providers(providers, runtime.get_available_providers())
    path = graph_path(model)
    graph = read_graph_file(path)
    declared = read_signature(graph.inputs, graph.outputs, str(path))
    check_external_data(graph)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # what its warnings say is an error here
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not any(provider.kind is KINDS["cpu"] for provider in asked):
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = runtime.InferenceSession(
            str(path), options, providers=[provider.argument() for provider in asked], enable_fallback=0
        )
    except runtime_errors() as error:
        raise BadInputError(
            f"{path}: ONNX Runtime {runtime.__version__} cannot run it on {list(providers)} ({_one_line(error)})"
            f"{_way_out(graph, asked)}"
        ) from error
    check_started(asked, session.get_providers(), str(path))
    placement = read_placement(session, asked[0])
    if placement is not None:
        check_placement(asked, placement, str(path))
    inputs, outputs = (tuple(map(session_argument, values)) for values in (session.get_inputs(), session.get_outputs()))
    signature = read_signature(inputs, outputs, str(path))
    check_agreement(declared, signature, str(path))
    return OnnxModel(path, session, signature, asked[0], placement)


def graph_path(model: Path) -> Path:
    """The `.onnx` file: itself, or the only one of a folder.

    Raises:
        BadInputError: a folder with none or with several.
    """
    if not model.is_dir():
        return model
    graphs = sorted(model.glob("*.onnx"))
    if len(graphs) != 1:
        names = ", ".join(graph.name for graph in graphs) or "none"
        raise BadInputError(f"{model} holds {len(graphs)} .onnx files ({names}): name the one to open")
    return graphs[0]


def _way_out(graph: GraphFile, asked: Sequence[Provider]) -> str:
    """What a failure on the CPU comes from where the graph computes in bfloat16."""
    types = {*(TYPE_NAMES.get(number) for number in graph.data_types), *(value.type for value in graph.inputs)}
    if "tensor(bfloat16)" not in types or asked[-1].kind is not KINDS["cpu"]:
        return ""
    return (
        ": the graph holds bfloat16, which ONNX Runtime's CPU provider moves and converts, and does not compute in: "
        "export float32 or float16 for the CPU"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
