"""What a patch changes in a graph, collected before the graph is touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignez_bake.onnx_patch.base_graph import INSERTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.edits_data import EditsData, StoredValues


@dataclass
class GraphChanges:
    """Changes of one graph. Nodes are named by their place in the base's list, which stays as it is until `apply`.

    Attributes:
        base: the graph that they are made for.
        data: takes the new values.
        values: new values of initialisers, by name: of ones that are there, and of new ones.
        inputs: new names of inputs: (place of the node, which input) -> name.
        outputs: new names of first outputs, by place of the node.
        after: nodes to put behind a node, by its place.
        first: nodes to put before all others.
    """

    base: BaseGraph
    data: EditsData
    values: dict[str, StoredValues] = field(default_factory=dict)
    inputs: dict[tuple[int, int], str] = field(default_factory=dict)
    outputs: dict[int, str] = field(default_factory=dict)
    after: dict[int, list[Any]] = field(default_factory=dict)
    first: list[Any] = field(default_factory=list)

    @property
    def added_nodes(self) -> int:
        """How many nodes are new."""
        return len(self.first) + sum(map(len, self.after.values()))

    def node(
        self, operator: str, inputs: tuple[str, ...], name: str, attributes: Mapping[str, int] | None = None
    ) -> Any:  # noqa: ANN401 - a NodeProto
        """A node whose only output has the node's name."""
        import onnx  # noqa: PLC0415 - comes with an extra

        node = onnx.helper.make_node(operator, list(inputs), [name], name=name)
        for key, value in (attributes or {}).items():
            node.attribute.append(onnx.helper.make_attribute(key, value))
        return node

    def new_initialiser(self, name: str, values: NDArray[Any]) -> str:
        """Add an initialiser under this name, or a longer one where it is taken, and return its name."""
        taken = {*self.base.tensors, *self.base.producers, *self.base.uses, *self.values}
        while name in taken:
            name += "_"
        self.values[name] = self.data.store(values)
        return name

    def replace_input(self, place: int, which: int, initialiser: str, values: NDArray[Any], *, name: str) -> None:
        """Give a node other values at one of its inputs.

        Another node may read the same initialiser: exporters merge equal ones, and tied weights are one. Then the new
        values get a name of their own, and the others keep theirs.

        Args:
            place: of the node.
            which: input of it.
            initialiser: that is there now.
            values: that are to be there, in the layout in which the node reads them.
            name: of the new initialiser, if one is needed.
        """
        direct = self.base.model.graph.node[place].input[which] == initialiser
        if direct and self.base.uses[initialiser] == 1:
            self.values[initialiser] = self.data.store(values)
            return
        self.inputs[place, which] = self.new_initialiser(name, values)


def inserted_name(*parts: str) -> str:
    """Name of a node that a patch adds."""
    return INSERTED + "/".join(parts)
