"""Level `tensors`: what lies on the disk, against the formula and the base. Nothing is run."""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.certificate.verdict import MIN_DELIVERED_SHARE, lowest_share, tensors_json
from alignez_bake.lowering.fold import delivery
from alignez_bake.onnx_graph.initialisers import open_graph
from alignez_bake.onnx_patch.base_graph import INSERTED, data_files
from alignez_bake.onnx_patch.delivered import DeliverySums
from alignez_bake.onnx_patch.fold_site import folded_site

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.lowering.fold import Delivery
    from alignez_bake.onnx_graph.initialisers import GraphTensors
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.decisions import SitePatch
    from alignez_bake.onnx_patch.fold_site import FoldedWeight
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class GraphTensorsLevel:
    """What was found.

    Attributes:
        verdict: `failed` where a tensor is not the formula's, or anything else is not the base's, or where rounding
            took more than a tenth of an edit.
        reasons: one line each.
        deliveries: of every folded tensor.
        untouched: number of initialisers that are the base's, byte for byte.
        added_nodes: number of nodes that the base has not.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    deliveries: tuple[Delivery, ...]
    untouched: int
    added_nodes: int

    @property
    def level(self) -> Level:
        """Which level."""
        return "tensors"

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        return {
            **tensors_json(
                self,
                edited=len(self.deliveries),
                untouched=self.untouched,
                lowest_delivered_share=lowest_share(entry.share for entry in self.deliveries),
            ),
            "added_nodes": self.added_nodes,
        }


def certify_stored(base: BaseGraph, patches: Sequence[SitePatch], graph: Path, progress: Progress) -> GraphTensorsLevel:
    """Read the patched graph from the disk and compare it.

    Args:
        base: the graph that was patched.
        patches: what was done.
        graph: the patched `.onnx` file.
        progress: counts sites.

    Raises:
        BadInputError: a file that cannot be read.
    """
    import onnx  # noqa: PLC0415 - comes with an extra

    stored, model = open_graph(graph), onnx.load(graph, load_external_data=False)
    comparison = _Comparison(base, stored, model)
    with progress.task("checking tensors", len(patches)) as advance:
        for patch in patches:
            comparison.check_site(patch)
            advance()
    comparison.check_nodes()
    comparison.check_untouched()
    reasons = tuple(comparison.reasons)
    return GraphTensorsLevel(
        "failed" if reasons else "passed",
        reasons,
        tuple(comparison.deliveries),
        comparison.untouched,
        comparison.added_nodes,
    )


_NEW: Final = "alignez."
"""How the names of initialisers begin that a patch adds."""


class _Comparison:
    def __init__(self, base: BaseGraph, stored: GraphTensors, model: Any) -> None:  # noqa: ANN401 - a ModelProto
        self.base, self.stored, self.model = base, stored, model
        self.reasons: list[str] = []
        self.deliveries: list[Delivery] = []
        self.untouched = self.added_nodes = 0
        self.edited: set[str] = set()
        # The base's nodes as the patched graph has them, in order.
        self.nodes = [node for node in model.graph.node if not node.name.startswith(INSERTED)]
        self.by_name = {name: node for node in model.graph.node for name in node.output}
        # Inputs and outputs in which a node of the base may differ.
        self.may_differ: set[tuple[str, int]] = set()

    def check_site(self, patch: SitePatch) -> None:
        """The folded tensors of one site; of an inserted one nothing is folded, and running it tells."""
        graph_map = patch.graph_map
        self.may_differ |= {("input", graph_map.place), ("output", graph_map.place)}
        if graph_map.bias_place is not None:
            self.may_differ |= {("input", graph_map.bias_place), ("output", graph_map.bias_place)}
        if not patch.folds:
            return
        folded = folded_site(self.base, patch)
        weight, bias = self._names_at(patch)
        if self._is_there(patch, weight):
            self._compare_weight(patch, folded.weight, weight)
        if folded.bias is not None and self._is_there(patch, bias):
            stored = self.stored.read(bias).reshape(-1)
            equal = _same_values(stored, folded.bias.rounded(patch.graph_map.dtype))
            self._note(patch, bias, delivery(folded.bias, stored) if equal else None)

    def _names_at(self, patch: SitePatch) -> tuple[str, str]:
        """The initialisers that the patched graph has as weight and as bias of a site."""
        graph_map, nodes = patch.graph_map, self.base.model.graph.node
        place = graph_map.place if graph_map.bias_place is None else graph_map.bias_place
        last = self.by_name[graph_map.output]  # what computes the site's output now
        if graph_map.bias is None:
            bias = last.input[1] if last.name.startswith(INSERTED) else ""
            node = self.by_name[last.input[0]] if last.name.startswith(INSERTED) else last
        else:
            bias = last.input[graph_map.bias_input]
            node = last if place == graph_map.place else self.by_name[nodes[graph_map.place].output[0]]
        return node.input[1], bias

    def _is_there(self, patch: SitePatch, name: str) -> bool:
        if name not in self.stored:
            self.reasons.append(f"{patch.site}: {name or 'its bias'} is not in the graph")
        return name in self.stored

    def _compare_weight(self, patch: SitePatch, weight: FoldedWeight, name: str) -> None:
        stored, dtype = self.stored.read(name), patch.graph_map.dtype
        equal, sums = stored.shape == weight.base.shape, DeliverySums(weight)
        for part, block in weight.blocks() if equal else ():
            equal &= _same_values(stored[part], block.rounded(dtype))
            sums.add(block, stored[part])
        self._note(patch, name, sums.result() if equal else None)

    def _note(self, patch: SitePatch, name: str, figures: Delivery | None) -> None:
        """Keep the figures of a tensor; None: it is not what it should be."""
        self.edited.add(name)
        dtype = patch.graph_map.dtype
        if figures is None:
            self.reasons.append(f"{patch.site}: {name} is not the formula's, rounded once to {dtype}")
            return
        self.deliveries.append(figures)
        if figures.share is not None and figures.share < MIN_DELIVERED_SHARE:
            self.reasons.append(
                f"{patch.site}: rounding to {dtype} leaves {figures.share:.2f} of the edit in {name}, below "
                f"{MIN_DELIVERED_SHARE}: use a larger strength, or a graph of float32"
            )

    def check_nodes(self) -> None:
        """The base's nodes in their order, each as it was but for what an edit had to change."""
        self.added_nodes = len(self.model.graph.node) - len(self.nodes)
        dropped = 0
        found = iter(self.nodes)
        current = next(found, None)
        for place, node in enumerate(self.base.model.graph.node):
            if current is not None and self._same(place, node, current):
                current = next(found, None)
            elif node.op_type in ("Transpose", "Identity") and node.output[0] not in self.by_name:
                dropped += 1
            else:
                self.reasons.append(f"node {node.name or node.op_type!r} is not what it was in the base")
                return
        if current is not None:
            self.reasons.append(f"node {current.name or current.op_type!r} is in the result and not in the base")

    def _same(self, place: int, before: Any, now: Any) -> bool:  # noqa: ANN401 - NodeProtos
        if before == now:
            return True
        if ("input", place) not in self.may_differ or len(before.input) != len(now.input):
            return False
        copy = type(before)()
        copy.CopyFrom(now)
        for which, (name, other) in enumerate(zip(before.input, now.input, strict=True)):
            if name != other and other.startswith(_NEW):
                copy.input[which] = name
        if copy.output[0].startswith(INSERTED):
            copy.output[0] = before.output[0]
        return bool(copy == before)

    def check_untouched(self) -> None:
        """Every other initialiser byte for byte; data files that are the same file need not be read."""
        same_files = {
            name: _same_file(self.base.path.parent / name, self.stored.path.parent / name)
            for name in data_files(self.model)
            if (self.base.path.parent / name).is_file()
        }
        for name in self.base.tensors:
            if name in self.edited or name not in self.stored:
                continue
            before, now = self.base.tensors.entry(name), self.stored.entry(name)
            if (before.data_type, before.shape) != (now.data_type, now.shape):
                self.reasons.append(f"{name} has another dtype or shape than in the base")
                continue
            location = None if before.file is None else before.file.relative_to(self.base.path.parent).as_posix()
            at_home = now.file is not None and now.file.relative_to(self.stored.path.parent).as_posix() == location
            shared = at_home and before.offset == now.offset and location is not None and same_files.get(location)
            if not shared and self.base.tensors.read_bytes(name) != self.stored.read_bytes(name):
                self.reasons.append(f"{name} is not edited, and not what it was in the base")
            self.untouched += 1


def _same_values(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    return found.dtype == expected.dtype and bool(np.array_equal(found, expected))


def _same_file(first: Path, second: Path) -> bool:
    """Whether two names are one file, or two of the same bytes."""
    return first.samefile(second) or filecmp.cmp(first, second, shallow=False)
