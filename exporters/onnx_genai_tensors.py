"""Level `tensors` of a folder for onnxruntime-genai: its graph's initialisers are the baked checkpoint's tensors.

The builder gives initialisers names of its own, transposes matrices, and may put queries, keys and values side by side
into one. So a tensor is looked for by its values: whole, or as the part of a stack that begins where the ones before
it in the attention module end; among the initialisers of its own layer, since names have its number. A tensor that the
edits change must be found. One that they don't may be stored in another form (norms that add 1, say): it is listed.
What the nodes do with the values is level `forward`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.exporters.checkpoint_contents import checkpoint_contents

from alignez_bake.certificate.graph_tensor_values import WantedTensors
from alignez_bake.certificate.graph_tensors import GraphTensorsCertificate
from alignez_bake.certificate.tensors import rounding_reasons
from alignez_bake.lowering.fold import delivery
from alignez_bake.onnx_graph.initialisers import open_graph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.certificate.graph_tensor_values import WantedTensor
    from alignez_bake.certificate.verdict import Verdict
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.lowering.fold import Delivery
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.onnx_graph.initialisers import GraphTensors
    from alignez_bake.progress import Progress

_LARGE: Final = 4096
"""Initialisers of more values that belong to no tensor are named; tables of positions are such."""
_STACKED: Final = ("q_proj", "k_proj", "v_proj")
"""In the order in which they lie side by side."""
_LAYER: Final = re.compile(r"\blayers\.(\d+)\.")
_ELSEWHERE: Final = "no initialiser has its values"


def certify_genai_tensors(
    base: ModelFolder, lowering: Lowering, graph: Path, *, dtype: str | None, progress: Progress
) -> GraphTensorsCertificate:
    """Compare a graph of the builder with base and formula, one tensor at a time.

    Args:
        base: the base model.
        lowering: how the edits went in; none is inserted.
        graph: the `.onnx` file, its data beside it.
        dtype: of the baked checkpoint; the stored dtypes where None.
        progress: counts tensors.

    Raises:
        BadInputError: a graph or a base that is damaged.
    """
    contents, opened = checkpoint_contents(base, lowering), open_graph(graph)
    wanted = WantedTensors(contents, dtype)
    shapes = {name: wanted.shape(name) for name in contents.names}
    reasons: list[str] = []
    deliveries: list[Delivery] = []
    not_comparable: dict[str, str] = {}
    claimed: set[str] = set()
    untouched = 0
    with progress.task("comparing initialisers", len(shapes)) as advance:
        for name in shapes:
            advance()
            tensor = wanted.make(name)
            found = next(_equal(tensor, name, shapes, opened), None)
            if found is not None:
                claimed.add(found[0])
                if tensor.folded is None:
                    untouched += 1
                else:
                    deliveries.append(delivery(tensor.folded, found[1]))
            elif name in contents.edited:
                reasons.append(f"{name}, which the edits change, is not in the graph: {_ELSEWHERE}")
            else:
                not_comparable[name] = _ELSEWHERE
    reasons += rounding_reasons(deliveries)
    verdict: Verdict = "failed" if reasons else "passed"
    if not reasons and all(entry.share is None for entry in deliveries):
        verdict, reasons = "inconclusive", ["the edits change nothing, so nothing shows that they were applied"]
    others = [name for name in opened if name not in claimed]
    return GraphTensorsCertificate(
        verdict,
        tuple(reasons),
        tuple(deliveries),
        untouched,
        0,
        not_comparable,
        len(others),
        tuple(name for name in others if opened.entry(name).size > _LARGE),
    )


def _equal(
    tensor: WantedTensor, name: str, shapes: dict[str, tuple[int, ...]], graph: GraphTensors
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Initialisers that hold a tensor, and the values there."""
    start = _start(name, shapes)
    layer = _LAYER.findall(name)
    for initialiser in graph:
        others = _LAYER.findall(initialiser)
        if layer and others != layer:
            continue
        for values in _parts(graph, initialiser, tensor.shape, start):
            if not tensor.difference(values):
                yield initialiser, values


def _start(name: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """How many rows of the same attention module lie before a tensor's, where they are stacked."""
    module, _, part = name.rpartition(".")
    path, _, last = module.rpartition(".")
    if last not in _STACKED:
        return 0
    before = [f"{path}.{other}.{part}" for other in _STACKED[: _STACKED.index(last)]]
    return sum(shapes[other][0] for other in before if other in shapes)


def _parts(graph: GraphTensors, initialiser: str, shape: tuple[int, ...], start: int) -> Iterator[NDArray[Any]]:
    """An initialiser's values in the order of a tensor, where it can hold it: as it is, transposed, or a part."""
    entry = graph.entry(initialiser)
    if len(entry.shape) != len(shape):
        return
    if entry.shape == shape:
        yield graph.read(initialiser)
    if len(shape) == 1 and entry.shape[0] >= start + shape[0]:
        yield graph.read(initialiser)[start : start + shape[0]]
    if len(shape) == 2 and entry.shape[0] == shape[1]:
        transposed = graph.read(initialiser).T
        if len(transposed) == shape[0]:
            yield transposed
        elif len(transposed) >= start + shape[0]:
            yield transposed[start : start + shape[0]]
