"""Which module of the model a node was made of, as far as the graph says.

Three things tell, and each exporter leaves some of them:

1. torch's dynamo exporter: metadata of the node, the list of the modules around it, its own name last;
2. the TorchScript exporter and onnxruntime-genai's builder: the node's name, a path with slashes;
3. all of them, where no optimiser renamed it: the name of the weight.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.site import Site, SiteKind

SCOPES: Final = "pkg.torch.onnx.name_scopes"
_WEIGHT_ENDINGS: Final = (".weight", ".bias", ".MatMul", ".Add")

# The builder's own words, whatever the model calls its modules, and a fused gate it takes apart.
_BUILDER_MODULES: Final[Mapping[SiteKind, tuple[str, ...]]] = {
    "attn_write": ("attn.o_proj",),
    "mlp_write": ("mlp.down_proj", "mlp.fc2"),
    "mlp_gate": ("mlp.gate_proj",),
}
_BUILDER_BLOCKS: Final[Mapping[SiteKind, str]] = {"attn_write": "attn", "mlp_write": "mlp"}


def paths_of(node: Any) -> set[str]:  # noqa: ANN401 - a NodeProto
    """Dotted paths of the module that a node may belong to, from the outermost module that the graph knows."""
    found = set()
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            found.add(_innermost_module(entry.value))
    if "/" in node.name:
        found.add(".".join(node.name.strip("/").split("/")[:-1]))
    for name in node.input[1:2]:
        while name.endswith(_WEIGHT_ENDINGS):
            name = name[: name.rindex(".")]  # noqa: PLW2901 - one ending after the other
            found.add(name)
    return found - {""}


def site_modules(architecture: Architecture, site: Site, *, from_builder: bool) -> tuple[str, ...]:
    """What the path of the site's map ends with: its own list of layers, since prefixes differ between exporters.

    Args:
        architecture: of the model.
        site: a linear site.
        from_builder: whether onnxruntime-genai's builder made the names.
    """
    return _below_layer(
        architecture, site, (architecture.linear_site(site.kind, site.layer).module,), _BUILDER_MODULES, from_builder
    )


def block_modules(architecture: Architecture, site: Site, *, from_builder: bool) -> tuple[str, ...]:
    """Likewise, of the attention or MLP module whose input `reads: block` reads."""
    blocks = {kind: (name,) for kind, name in _BUILDER_BLOCKS.items()}
    return _below_layer(architecture, site, (architecture.blocks[site.kind],), blocks, from_builder)


def ends_with(path: str, modules: tuple[str, ...]) -> bool:
    """Whether a path is one of these modules, whatever lies before them."""
    return any(path == module or path.endswith(f".{module}") for module in modules)


def lies_within(path: str, modules: tuple[str, ...]) -> bool:
    """Whether a path is one of these modules or below one."""
    return any(f".{module}." in f".{path}." for module in modules)


def _below_layer(
    architecture: Architecture,
    site: Site,
    own: tuple[str, ...],
    builder: Mapping[SiteKind, tuple[str, ...]],
    from_builder: bool,  # noqa: FBT001
) -> tuple[str, ...]:
    if site.layer is None:
        # All exporters have the head outside of the layers, under its own name.
        return own
    if from_builder and site.kind in builder:
        return tuple(f"layers.{site.layer}.{module}" for module in builder[site.kind])
    layers = architecture.layers.rsplit(".", 1)[-1]
    return tuple(f"{layers}.{site.layer}.{module}" for module in own)


def _innermost_module(value: str) -> str:
    """The last module of torch's list, which is written as Python writes a list; its last entry is the node's own."""
    try:
        scopes = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    if not isinstance(scopes, list) or len(scopes) < 2 or not isinstance(scopes[-2], str):
        return ""
    return scopes[-2]
