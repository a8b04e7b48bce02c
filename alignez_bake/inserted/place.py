"""Which module carries the edits of a site, and which of its outputs they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.slot import find_slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.edit_plan import Group
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Site


@dataclass(frozen=True)
class Place:
    """Where an inserted module sits.

    Attributes:
        module: path of the module whose output is edited, from the causal model down.
        columns: the columns of its output that belong to the site; None: all.
    """

    module: str
    columns: slice | None = None


def find_place(base: ModelFolder, site: Site, groups: Sequence[Group]) -> Place:
    """The module at which the edits of a site can be inserted.

    An edit that reads the output or the input of a linear map sits at that map. One that reads the block's input
    sits at the block, attention or MLP: the map is the last step of its block, so that both put out the same, and
    what the block reads is the input of the module at hand. (In training, dropout at the end of a block comes
    before such an edit instead of after it.)

    Raises:
        BadInputError: no such site or layer, a block whose last step is not the writer, or edits of one site that
            read the map's input and the block's.
    """
    architecture = base.architecture
    architecture.check_layer(site, base.config)
    if site.kind == "embed":
        return Place(architecture.embed)
    if site.kind == "residual":
        assert site.layer is not None
        return Place(architecture.layer_path(site.layer))
    module = architecture.module_path(site)
    reads = {edit.reads for group in groups for edit in group.edits}
    if "block" in reads:
        block = architecture.block_path(site)
        if not f"{module}.".startswith(f"{block}."):
            raise BadInputError(
                f"edits at {site} that read the block cannot be inserted: in {architecture.model_type} what the block "
                "reads and what it puts out belong to two modules"
            )
        if "input" in reads and module != block:
            raise BadInputError(
                f"edits at {site} read both the input of {module} and that of its block, but an inserted module has "
                "one input: give them the same `reads`"
            )
        return Place(block)
    linear = architecture.linear_site(site.kind, site.layer)
    for edit_reads in sorted(reads):
        if edit_reads not in linear.legal_reads:
            raise BadInputError(
                f"an edit at {site} reads {edit_reads!r}, but {module} in {architecture.model_type} can be read at "
                f"{' or '.join(linear.legal_reads)} only"
            )
    if linear.rows == "all":
        # Of experts the block that they end: gpt_oss flattens their sum, but not what the block gives.
        return Place(architecture.standalone_path(site))
    return Place(module, find_slot(base, site).rows)
