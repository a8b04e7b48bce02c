"""Level `tensors` of a graph: its initialisers are the tensors of the baked checkpoint, read from disk.

Nothing is run, and neither torch nor ONNX Runtime is needed. What is shown is that the values are there, under the name
or at the place where the exporter puts them, and that nodes use them; that these do with them what the model does is
level `forward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.certificate.compared_tensors import ComparedTensors
from alignez_bake.certificate.graph_tensor_values import WantedTensors
from alignez_bake.certificate.tensors import judged, listed
from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.lowering.fold import delivery
from alignez_bake.onnx_graph.initialisers import open_graph
from alignez_bake.onnx_graph.operands import used_initialisers
from alignez_bake.onnx_graph.places import TensorPlaces
from alignez_bake.safetensors_io.names import resolve_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignez_bake.certificate.graph_tensor_values import WantedTensor
    from alignez_bake.exporters.checkpoint_contents import CheckpointContents
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.lowering.fold import Delivery
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.onnx_graph.initialisers import GraphTensors
    from alignez_bake.onnx_graph.places import Place, Places
    from alignez_bake.progress import Progress

_LARGE: Final = 4096
"""Initialisers of more values that belong to no tensor are named: constants of the nodes have fewer."""
_HEAD_NAMES: Final = ("lm_head.weight",)
"""In transformers' module trees; the files of some model types call it otherwise."""


@dataclass(frozen=True)
class GraphTensorsCertificate(ComparedTensors):
    """What a comparison of a graph's initialisers with a baked checkpoint found.

    The verdict is also `failed` where an edited tensor is not in the graph, or no node uses it.

    Attributes:
        not_comparable: tensors without an edit that are not in the graph as such, each with the reason.
        others: number of initialisers that belong to no tensor: constants of the nodes, tables of positions.
        large_others: names of those with many values.
    """

    not_comparable: Mapping[str, str]
    others: int
    large_others: tuple[str, ...]

    def own_figures(self) -> dict[str, Any]:
        """What cannot be compared, and what belongs to no tensor."""
        return {
            "not_comparable": [f"{name} ({reason})" for name, reason in self.not_comparable.items()],
            "other_initialisers": self.others,
            "large_other_initialisers": list(self.large_others),
        }


def certify_graph_tensors(
    base: ModelFolder, lowering: Lowering, graph: Path, *, dtype: str | None, progress: Progress
) -> GraphTensorsCertificate:
    """Compare a graph on disk with the base and the formula, one tensor at a time.

    Args:
        base: the base model.
        lowering: how the edits went in.
        graph: the `.onnx` file, its data beside it.
        dtype: of all float tensors, such as "float16"; the stored dtypes where None.
        progress: counts tensors.

    Raises:
        BadInputError: a graph or a base that is damaged, data out of the graph's folder, an unknown dtype, or inserts
            that no generated code can carry.
    """
    contents, opened = checkpoint_contents(base, lowering), open_graph(graph)
    comparison = _Comparison(contents, dtype, opened)
    with progress.task("comparing initialisers", len(contents.names)) as advance:
        for name in contents.names:
            advance()
            comparison.compare(name)
            opened.release()
    verdict, reasons = judged(comparison.reasons, comparison.deliveries, lowering)
    others = comparison.others
    return GraphTensorsCertificate(
        verdict,
        reasons,
        tuple(comparison.deliveries),
        comparison.untouched,
        len(contents.added),
        comparison.not_comparable,
        len(others),
        tuple(name for name in others if opened.entry(name).size > _LARGE),
    )


class _Comparison:
    """Initialisers and what they must hold, tensor by tensor."""

    def __init__(self, contents: CheckpointContents, dtype: str | None, graph: GraphTensors) -> None:
        self._contents, self._graph = contents, graph
        self._wanted = WantedTensors(contents, dtype)
        shapes = {name: self._wanted.shape(name) for name in contents.names}
        prefix = contents.home.architecture.base_model_prefix
        self._places = TensorPlaces(graph, shapes, prefix, _head_names(contents))
        self._used = used_initialisers(graph)
        self._parts: dict[str, Place] = {}
        self._found: set[str] = set()
        self.reasons: list[str] = []
        self.deliveries: list[Delivery] = []
        self.not_comparable: dict[str, str] = {}
        self.untouched = 0

    @property
    def others(self) -> list[str]:
        """Initialisers that belong to no tensor."""
        return [name for name in self._places.unclaimed if name not in self._found]

    def compare(self, name: str) -> None:
        """Find a tensor in the graph: at every place that has its name, else at one where it can be."""
        if self._wanted.is_packed(name):
            self.not_comparable[name] = "its values are packed below one byte"
            return
        wanted, places = self._wanted.make(name), self._places.of(name)
        different = {place: text for place in places.certain if (text := self._difference(wanted, place))}
        found = list(places.certain)
        if not found:
            elsewhere = (*places.possible, *self._places.merged(name))
            found = [place for place in elsewhere if not self._difference(wanted, place)][:1]
        if not found:
            self._miss(name, wanted, places)
            return
        self._found.add(found[0].initialiser)
        self.reasons += [f"{name}: initialiser {place} {text}" for place, text in different.items()]
        if not any(place.initialiser in self._used for place in found):
            self.reasons.append(f"{name}: no node uses initialiser {found[0]}")
        if wanted.folded is not None:
            values = found[0].values(self._graph, wanted.shape)
            if values.shape == wanted.shape:
                self.deliveries.append(delivery(wanted.folded, values))
        elif not different and name not in self._contents.added:
            self.untouched += 1
        if found[0].index is not None:
            self._check_part(name, found[0])

    def _difference(self, wanted: WantedTensor, place: Place) -> str:
        return wanted.difference(place.values(self._graph, wanted.shape))

    def _miss(self, name: str, wanted: WantedTensor, places: Places) -> None:
        """Say why a tensor is nowhere: of one with edits, and one that has a place, this is a failure."""
        why = "; ".join(places.made)
        if not why:
            differences = [f"{place} {self._difference(wanted, place)}" for place in places.possible]
            why = listed(differences) or "no initialiser has its name or its values"
        if name in self._contents.edited or name in self._contents.added:
            self.reasons.append(f"{name}, which the edits change, is not in the graph: {why}")
        elif places.possible and not places.made:
            self.reasons.append(f"{name} is not in the graph: {why}")
        else:
            self.not_comparable[name] = why

    def _check_part(self, name: str, place: Place) -> None:
        """Of all experts in all layers, a map must be the same part of the stack."""
        kind = ".".join("#" if part.isdigit() else part for part in name.split("."))
        first = self._parts.setdefault(kind, place)
        if (place.start, place.transposed) != (first.start, first.transposed):
            self.reasons.append(f"{name} is {place} of the graph's stacks, where others like it are as {first} is")


def _head_names(contents: CheckpointContents) -> dict[str, tuple[str, ...]]:
    """What a model calls its head's weight, by the key of the tensor that it is: of tied embeddings the embedding's."""
    architecture, tensors = contents.home.architecture, contents.home.tensors
    key = f"{architecture.head}.weight"
    if architecture.is_tied(contents.home.config):
        key = resolve_key(tensors, f"{architecture.embed}.weight", architecture.base_model_prefix)
    return {key: _HEAD_NAMES}
