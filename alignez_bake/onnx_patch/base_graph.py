"""The graph that is patched, opened without its weights and checked before anything else is done."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.architectures.architecture import INSERTED_EDITS, Architecture, architecture_for
from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import read_config
from alignez_bake.onnx_graph.initialisers import GraphTensors, open_graph
from alignez_bake.onnx_patch.node_paths import paths_of
from alignez_bake.runtime.graph_file import read_graph_file
from alignez_bake.runtime.signature import Signature, read_signature
from alignez_bake.safetensors_io.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alignez_bake.runtime.value_info import Argument

GENAI_CONFIG: Final = "genai_config.json"
INSERTED: Final = "/alignez/"
"""How the names of nodes begin that a patch adds."""

_EXTERNAL: Final = 1  # TensorProto.DataLocation
_CACHE: Final = re.compile(r"(?:past_key_values|present)\.(\d{1,6})\.(key|value)")
_MAX_CONFIG_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class BaseGraph:
    """A causal graph with a cache, and what its folder says of the model.

    Attributes:
        folder: where it lies.
        path: the `.onnx` file.
        model: its `ModelProto`; external data are not in it.
        tensors: its initialisers, read where they lie. onnx's own reader refuses a data file that has more than one
            hard link, which a graph may share with those that were patched from it.
        config: config.json; of onnxruntime-genai's builder what genai_config.json says instead.
        from_builder: whether the builder of onnxruntime-genai wrote it, which has names of its own.
        architecture: where the sites of its model lie.
        signature: what it takes and gives.
    """

    folder: Path
    path: Path
    model: Any
    tensors: GraphTensors
    config: dict[str, Any]
    from_builder: bool
    architecture: Architecture
    signature: Signature

    @cached_property
    def producers(self) -> dict[str, int]:
        """Place of the node that computes a value, by the value's name."""
        return {name: place for place, node in enumerate(self.model.graph.node) for name in node.output if name}

    @cached_property
    def uses(self) -> Counter[str]:
        """How often each value is read: by nodes, those of subgraphs included, and as an output of the graph."""
        found = Counter(_reads(self.model.graph))
        found.update(value.name for value in self.model.graph.output)
        return found

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Places of the nodes of the main graph that read a value, by the value's name."""
        found: dict[str, list[int]] = {}
        for place, node in enumerate(self.model.graph.node):
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(place)
        return found

    @cached_property
    def module_paths(self) -> tuple[frozenset[str], ...]:
        """Of every node the paths of the module that it may belong to."""
        return tuple(frozenset(paths_of(node)) for node in self.model.graph.node)

    def rank(self, name: str) -> int | None:
        """Number of axes of a value: what the file says of it, or what follows from its inputs; None: nothing tells."""
        told = self._ranks.get(name)
        return self._inferred_ranks.get(name) if told is None else told

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return _described_ranks(self.model.graph)

    @cached_property
    def _inferred_ranks(self) -> dict[str, int]:
        import onnx  # noqa: PLC0415 - comes with an extra

        return _described_ranks(onnx.shape_inference.infer_shapes(self.model).graph)

    @property
    def has_config(self) -> bool:
        """Whether the folder has the model's config.json, so that switches can be read."""
        return (self.folder / "config.json").is_file()

    @property
    def data_files(self) -> tuple[str, ...]:
        """Files beside the graph that hold its external data, relative to it, in order of first appearance."""
        return data_files(self.model)


def open_base_graph(folder: Path) -> BaseGraph:
    """Open the graph of a folder, and refuse by name what cannot be patched.

    Args:
        folder: with one `.onnx` file and config.json, or genai_config.json, which names the file.

    Raises:
        BadInputError: the package onnx is missing; no folder, no graph or several, no config; an old opset; external
            data that are missing, cut short or out of the folder; no cache or unknown names; nodes of an earlier
            patch; an architecture that is not described.
    """
    if find_spec("onnx") is None:
        raise BadInputError("patching a graph needs the package onnx: pip install 'alignez-bake[onnx]'")
    import onnx  # noqa: PLC0415 - comes with an extra
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # noqa: PLC0415 - likewise

    if not folder.is_dir():
        raise BadInputError(f"no such folder: {folder}; --base-onnx names the folder of a graph")
    builder = _builder_config(folder)
    path = _graph_file(folder, builder)
    tensors, signature = open_graph(path), _signature(path, builder)
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BadInputError(f"{path} is no ONNX model: {' '.join(str(error).split())}") from error
    config, from_builder = _config(folder, builder)
    patched = any(node.name.startswith(INSERTED) for node in model.graph.node)
    if patched or INSERTED_EDITS in config:
        raise BadInputError(
            f"{path} has inserted edits of an earlier bake, behind which new ones would not stand: patch its base, "
            "with all edits in one file"
        )
    return BaseGraph(folder, path, model, tensors, config, from_builder, architecture_for(config), signature)


def data_files(model: Any) -> tuple[str, ...]:  # noqa: ANN401 - a ModelProto
    """Files beside a graph that hold external data of it, relative to it, in order of first appearance."""
    return tuple(
        dict.fromkeys(
            entry.value
            for tensor in all_tensors(model)
            if tensor.data_location == _EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        )
    )


def all_tensors(model: Any) -> Iterator[Any]:  # noqa: ANN401 - a ModelProto
    """Every tensor of a model: initialisers, and values of nodes, those of subgraphs and functions included."""
    yield from _tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_node(node)


def _described_ranks(graph: Any) -> dict[str, int]:  # noqa: ANN401 - a GraphProto
    described = (*graph.value_info, *graph.input, *graph.output)
    shaped = (value for value in described if value.type.tensor_type.HasField("shape"))
    return {value.name: len(value.type.tensor_type.shape.dim) for value in shaped}


def _tensors(graph: Any) -> Iterator[Any]:  # noqa: ANN401
    yield from graph.initializer
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: Any) -> Iterator[Any]:  # noqa: ANN401
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from _tensors(graph)


def _reads(graph: Any) -> Iterator[str]:  # noqa: ANN401
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _reads(inner)
                yield from (value.name for value in inner.output)


def _builder_config(folder: Path) -> dict[str, Any] | None:
    file = folder / GENAI_CONFIG
    if not file.is_file():
        return None
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise BadInputError(f"{file} has {file.stat().st_size} bytes: a config has at most {_MAX_CONFIG_BYTES}")
    model = parse_object(file.read_bytes(), str(file)).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("decoder"), dict):
        raise BadInputError(f"{file} describes no decoder: --base-onnx takes causal models of one graph")
    return model


def _graph_file(folder: Path, builder: dict[str, Any] | None) -> Path:
    if builder is not None:
        name = builder["decoder"].get("filename")
        if not isinstance(name, str) or "/" in name or "\\" in name or not (folder / name).is_file():
            raise BadInputError(f"{folder / GENAI_CONFIG} names the graph {name!r}, which is no file of its folder")
        return folder / name
    graphs = sorted(folder.glob("*.onnx"))
    if len(graphs) != 1:
        names = ", ".join(graph.name for graph in graphs) or "none"
        raise BadInputError(
            f"{folder} holds {len(graphs)} .onnx files ({names}): one graph with a cache can be patched"
        )
    return graphs[0]


def _config(folder: Path, builder: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
    """What is known of the model, and whether genai_config.json is all that says it."""
    if (folder / "config.json").is_file():
        return read_config(folder), builder is not None
    if builder is None:
        raise BadInputError(
            f"{folder} has no config.json and no {GENAI_CONFIG}: copy the model's config.json beside it"
        )
    model_type = builder.get("type")
    if not isinstance(model_type, str):
        raise BadInputError(f"{folder / GENAI_CONFIG} has no model type: copy the model's config.json beside it")
    architecture = architecture_for({"model_type": model_type})
    return {
        "model_type": model_type,
        architecture.layer_count: builder["decoder"].get("num_hidden_layers"),
        "vocab_size": builder.get("vocab_size"),
    }, True


def _signature(path: Path, builder: dict[str, Any] | None) -> Signature:
    """What the file declares.

    Whoever runs a graph by places needs the cache in one order, and the builder of onnxruntime-genai has another. A
    patch goes by names, so the order is no reason to refuse. Nor are sizes of the cache that genai_config.json tells.
    """
    declared = read_graph_file(path)
    inputs = sorted((_with_sizes(argument, builder) for argument in declared.inputs), key=_cache_place)
    outputs = sorted(declared.outputs, key=_cache_place)
    return read_signature(inputs, outputs, str(path))


def _with_sizes(argument: Argument, builder: dict[str, Any] | None) -> Argument:
    """A cache tensor with the numbers of genai_config.json where the builder left heads and size open."""
    if builder is None or argument.shape is None or _CACHE.fullmatch(argument.name) is None:
        return argument
    told = {1: builder["decoder"].get("num_key_value_heads"), 3: builder["decoder"].get("head_size")}
    shape = tuple(
        size if isinstance(size, int) or not isinstance(told.get(axis), int) else told[axis]
        for axis, size in enumerate(argument.shape)
    )
    return replace(argument, shape=shape)


def _cache_place(argument: Argument) -> tuple[int, str]:
    """Layer and part of a cache tensor, before which everything else keeps its order."""
    match = _CACHE.fullmatch(argument.name)
    return (-1, "") if match is None else (int(match[1]), match[2])
