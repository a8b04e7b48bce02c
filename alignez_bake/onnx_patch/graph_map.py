"""The map of a site in a graph: its node, its weight with the orientation, its bias, what goes in and comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_patch.dtypes import file_dtype_of
from alignez_bake.onnx_patch.node_paths import block_modules, ends_with, lies_within, site_modules
from alignez_bake.rehome.places import places_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.site import Site

_MAPS: Final = ("MatMul", "Gemm", "MatMulNBits")
_QUANTISED: Final = "MatMulNBits"
# What takes a map's bias along in a graph that was optimised: the place of that input.
_SWALLOW_BIAS: Final = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}


@dataclass(frozen=True)
class GraphMap:
    """What computes the output of a site.

    Attributes:
        site: the site.
        place: of the map's node in the graph.
        weight: name of the weight's initialiser; of a quantised map of its codes.
        transposed: whether that initialiser is [d_in, d_out].
        steps: nodes between the initialiser and the map (Transpose, Identity), which the map does without if its
            weight changes.
        bias: name of the bias's initialiser; None where the graph has none.
        bias_place: the node that adds the bias: the map's own (Gemm), or an Add; None likewise.
        bias_input: which input of that node.
        input: name of the value z that goes in.
        output: name of the value y = W z + b that comes out.
        rows: the outputs that belong to the site, where a fused map computes more.
        fused: number of all outputs.
        d_in: width of z.
        dtype: of the arithmetic, such as "F32".
        data_type: its number of TensorProto.DataType.
        quantised: whether the weight is codes of a few bits, into which nothing is folded.
    """

    site: Site
    place: int
    weight: str
    transposed: bool
    steps: tuple[int, ...]
    bias: str | None
    bias_place: int | None
    bias_input: int
    input: str
    output: str
    rows: slice
    fused: int
    d_in: int
    dtype: str
    data_type: int
    quantised: bool

    @property
    def d_out(self) -> int:
        """Width of the site's output."""
        return len(range(*self.rows.indices(self.fused)))

    def oriented(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A view [fused, d_in] of the weight as it is stored."""
        return stored.T if self.transposed else stored


def find_map(graph: BaseGraph, site: Site) -> GraphMap:
    """The map of a site.

    Raises:
        BadInputError: a site that is no map, or whose layer the model lacks; no node or several; a node that is none
            of MatMul, Gemm and MatMulNBits, or whose weight is no initialiser; a bias that was fused into a norm.
    """
    _check_site(graph, site)
    place = _find_node(graph, site)
    node = graph.model.graph.node[place]
    what = f"site {site}: node {node.name or node.op_type!r}"
    if node.op_type == _QUANTISED:
        return _quantised_map(graph, site, place, what)
    return _float_map(graph, site, place, what)


def check_widths(edit: Edit, graph_map: GraphMap, block_width: int | None) -> None:
    """Refuse an edit whose widths are not those of the graph.

    Raises:
        BadInputError: another width of what it edits or reads.
    """
    place = f"edit at {edit.site}"
    if edit.d_out != graph_map.d_out:
        raise BadInputError(f"{place} has width {edit.d_out}, but the graph's map has width {graph_map.d_out}")
    expected = {"output": graph_map.d_out, "input": graph_map.d_in, "block": block_width}[edit.reads]
    if edit.d_read not in (None, expected):
        raise BadInputError(f"{place} reads the {edit.reads} of width {edit.d_read}, but the graph's is {expected}")


def block_input(graph: BaseGraph, site: Site) -> tuple[str, int]:
    """Name and width of what enters the attention or MLP module that a writer ends.

    It is what the maps of that module read that is not computed within it. Where they read it reshaped (gpt2 flattens
    it for each map), the reshaped value is taken, since the writer's output has that shape too.

    Raises:
        BadInputError: no such value, or several.
    """
    modules = block_modules(graph.architecture, site, from_builder=graph.from_builder)
    nodes = graph.model.graph.node
    inside = {
        place for place, paths in enumerate(graph.module_paths) if any(lies_within(path, modules) for path in paths)
    }
    entering: dict[str, tuple[str, int]] = {}
    for place in sorted(inside):
        node = nodes[place]
        if node.op_type not in _MAPS:
            continue
        name, root = node.input[0], node.input[0]
        while (source := graph.producers.get(root)) in inside and nodes[source].op_type in ("Reshape", "Identity"):
            root = nodes[source].input[0]
        if source not in inside:
            width = _map_width(graph, site, place)
            if width is not None:
                entering.setdefault(root, (name, width))
    if len(entering) != 1:
        found = ", ".join(entering) or "none"
        raise BadInputError(
            f"site {site}: an edit reads what enters {modules[0]}, and the graph has {len(entering)} such values "
            f"({found}): bake the checkpoint and export it instead (--model BASE --as onnx)"
        )
    return next(iter(entering.values()))


def uses_bias(graph: BaseGraph, site: Site) -> bool | None:
    """Whether the model's map has a bias by its config; None where no config tells."""
    linear = graph.architecture.linear_site(site.kind, site.layer)
    if linear.bias in ("never", "always"):
        return linear.bias == "always"
    places = places_of(graph.architecture.model_type)
    switch = None if places is None else places.switch_of(linear.module)
    if switch is None or not graph.has_config:
        return None
    return bool(graph.config.get(switch.entry, switch.default))


def _check_site(graph: BaseGraph, site: Site) -> None:
    way_out = "bake the checkpoint and export it instead (--model BASE --as onnx)"
    if site.kind in ("residual", "embed"):
        raise BadInputError(f"site {site} is no map, and a patch edits maps alone: {way_out}")
    linear = graph.architecture.linear_site(site.kind, site.layer)
    graph.architecture.check_layer(site, graph.config)
    if linear.experts is not None:
        raise BadInputError(f"site {site} is a mixture of experts, whose maps a patch does not find: {way_out}")


def _find_node(graph: BaseGraph, site: Site) -> int:
    modules = site_modules(graph.architecture, site, from_builder=graph.from_builder)
    here = [
        (place, node)
        for place, node in enumerate(graph.model.graph.node)
        if any(ends_with(path, modules) for path in graph.module_paths[place])
    ]
    maps = [place for place, node in here if node.op_type in _MAPS and _has_weight(graph, node)]
    if len(maps) == 1:
        return maps[0]
    looked_for = " or ".join(modules)
    if maps:
        names = ", ".join(graph.model.graph.node[place].name for place in maps)
        raise BadInputError(f"site {site}: {looked_for} was looked for, and {len(maps)} maps have it ({names})")
    there = ", ".join(sorted({node.op_type for _, node in here})) or "no node"
    raise BadInputError(
        f"site {site}: a MatMul, Gemm or MatMulNBits of {looked_for} was looked for in metadata, node names and weight "
        f"names, and {there} is there: name the right model type in config.json, or export the graph again"
    )


def _has_weight(graph: BaseGraph, node: Any) -> bool:  # noqa: ANN401
    return len(node.input) > 1 and _initialiser_behind(graph, node.input[1]) is not None


def _initialiser_behind(graph: BaseGraph, name: str) -> tuple[str, bool, tuple[int, ...]] | None:
    """The initialiser that a value is, whether it is turned on the way, and the nodes on that way."""
    turned, steps = False, []
    while name not in graph.tensors:
        place = graph.producers.get(name)
        if place is None:
            return None
        node = graph.model.graph.node[place]
        if node.op_type == "Transpose" and _attributes(node).get("perm", [1, 0]) == [1, 0]:
            turned = not turned
        elif node.op_type != "Identity":
            return None
        steps.append(place)
        name = node.input[0]
    return name, turned, tuple(steps)


def _float_map(graph: BaseGraph, site: Site, place: int, what: str) -> GraphMap:
    node = graph.model.graph.node[place]
    behind = _initialiser_behind(graph, node.input[1])
    assert behind is not None
    weight, turned, steps = behind
    entry = graph.tensors.entry(weight)
    dtype = file_dtype_of(entry.data_type, f"{what}: its weight {weight}")
    if len(entry.shape) != 2:
        raise BadInputError(f"{what}: its weight {weight} has shape {list(entry.shape)}, and a map has two axes")
    attributes = _attributes(node)
    odd = [name for name in ("alpha", "beta") if attributes.get(name, 1.0) != 1.0]
    if odd or attributes.get("transA", 0):
        raise BadInputError(
            f"{what} has {', '.join(odd) or 'transA'}, so it is more than a map: export the graph again"
        )
    # A MatMul multiplies from the right, z W; Gemm's transB and a Transpose on the way turn that around.
    transposed = not (bool(attributes.get("transB", 0)) ^ turned)
    d_in, fused = entry.shape if transposed else entry.shape[::-1]
    bias = _gemm_bias(graph, place, what) if node.op_type == "Gemm" else _added_bias(graph, place, fused)
    output = node.output[0] if bias is None else graph.model.graph.node[bias[1]].output[0]
    _check_bias(graph, site, bias, output, what)
    return GraphMap(
        site, place, weight, transposed, steps,
        None if bias is None else bias[0], None if bias is None else bias[1], 0 if bias is None else bias[2],
        node.input[0], output, _rows(graph, site, fused), fused, d_in, dtype, entry.data_type, quantised=False,
    )  # fmt: skip


def _quantised_map(graph: BaseGraph, site: Site, place: int, what: str) -> GraphMap:
    node = graph.model.graph.node[place]
    attributes = _attributes(node)
    fused, d_in = attributes["N"], attributes["K"]
    scales = graph.tensors.entry(node.input[2]) if node.input[2] in graph.tensors else None
    if scales is None:
        raise BadInputError(f"{what}: its scales {node.input[2]} are no initialiser")
    own = node.input[5] if len(node.input) > 5 else ""
    bias = (own, place, 5) if own else _added_bias(graph, place, fused)
    output = node.output[0] if bias is None else graph.model.graph.node[bias[1]].output[0]
    _check_bias(graph, site, bias, output, what)
    return GraphMap(
        site, place, node.input[1], False, (),
        None if bias is None else bias[0], None if bias is None else bias[1], 0 if bias is None else bias[2],
        node.input[0], output, _rows(graph, site, fused), fused, d_in,
        file_dtype_of(scales.data_type, f"{what}: its scales"), scales.data_type, quantised=True,
    )  # fmt: skip


def _gemm_bias(graph: BaseGraph, place: int, what: str) -> tuple[str, int, int] | None:
    node = graph.model.graph.node[place]
    if len(node.input) < 3 or not node.input[2]:
        return None
    if node.input[2] not in graph.tensors:
        raise BadInputError(f"{what}: its bias {node.input[2]} is no initialiser: export the graph again")
    return node.input[2], place, 2


def _added_bias(graph: BaseGraph, place: int, width: int) -> tuple[str, int, int] | None:
    """The bias that an Add of the same module adds to the map's output, its place, and which input it is."""
    nodes = graph.model.graph.node
    readers = graph.readers.get(nodes[place].output[0], [])
    if len(readers) != 1 or nodes[readers[0]].op_type != "Add" or graph.uses[nodes[place].output[0]] != 1:
        return None
    add = nodes[readers[0]]
    which = 1 if add.input[0] == nodes[place].output[0] else 0
    if add.input[which] not in graph.tensors or graph.tensors.entry(add.input[which]).shape[-1:] != (width,):
        return None
    if graph.tensors.entry(add.input[which]).size != width:
        return None
    return (add.input[which], readers[0], which) if graph.module_paths[readers[0]] & graph.module_paths[place] else None


def _check_bias(graph: BaseGraph, site: Site, bias: tuple[str, int, int] | None, output: str, what: str) -> None:
    """An edit of a map whose bias is elsewhere would be of the map without it, and read it without it."""
    if bias is not None:
        return
    for place in graph.readers.get(output, []):
        node = graph.model.graph.node[place]
        position = _SWALLOW_BIAS.get(node.op_type)
        if position is not None and len(node.input) > position and node.input[position]:
            raise BadInputError(f"{what}: its bias was fused into {node.op_type}: patch the graph, then optimise it")
    if uses_bias(graph, site):
        raise BadInputError(
            f"{what}: by config.json the map has a bias, and no Add of an initialiser follows it: patch the graph "
            "before it is optimised"
        )


def _rows(graph: BaseGraph, site: Site, fused: int) -> slice:
    modules = site_modules(graph.architecture, site, from_builder=graph.from_builder)
    linear = graph.architecture.linear_site(site.kind, site.layer)
    own = modules[0].endswith(linear.module)
    return linear.row_slice(fused) if own else slice(0, fused)


def _map_width(graph: BaseGraph, site: Site, place: int) -> int | None:
    """Width of what a map reads; None of a product of two computed values."""
    node = graph.model.graph.node[place]
    if node.op_type == _QUANTISED:
        return int(_attributes(node)["K"])
    behind = _initialiser_behind(graph, node.input[1])
    if behind is None:
        return None
    dims = graph.tensors.entry(behind[0]).shape
    if len(dims) != 2:
        raise BadInputError(f"site {site}: weight {behind[0]} has shape {list(dims)}, and a map has two axes")
    return int(dims[1] if bool(_attributes(node).get("transB", 0)) ^ behind[1] else dims[0])


def _attributes(node: Any) -> dict[str, Any]:  # noqa: ANN401
    import onnx  # noqa: PLC0415 - comes with an extra

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
