"""Level `forward`, site by site: each edited map of the baked model, given the hooked one's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alignez_bake.certificate.forward_passes import relative_error
from alignez_bake.lowering.slot import find_slot

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignez_bake.certificate.forward_passes import SiteRecord
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Site


def comparable_maps(base: ModelFolder, lowering: Lowering) -> list[str]:
    """Paths of the edited modules that, given the hooked one's input, must give its output.

    Not where hidden units were added, whose values would have to be in that input, nor where the edit reads more than
    that, nor where the site got edits of the residual stream as well. The comparison of the whole model sees those.
    """
    architecture, plan = base.architecture, lowering.plan
    reads_block = {edit.site for edit in plan.edits if edit.reads == "block"}
    # Modules that get a batch flattened cannot tell its last rows by themselves.
    last = {edit.site for edit in plan.edits if edit.positions == "last"} if architecture.flattens else set()

    # Residual edits that became the writers'.
    joined = {
        fold.slot.site
        for fold in lowering.folds
        if sum(len(group.edits) for group in fold.groups) > sum(edit.site == fold.slot.site for edit in plan.edits)
    }

    def keeps_its_shape(site: Site) -> bool:
        before, after = find_slot(base, site), find_slot(lowering.home, site)
        return (before.d_out, before.d_in) == (after.d_out, after.d_in)

    return [
        architecture.standalone_path(site)
        for site in plan.sites
        if architecture.find_linear(site.kind, site.layer) is not None
        and site not in reads_block | last | joined
        and keeps_its_shape(site)
    ]


@torch.no_grad()
def worst_site(
    baked: PreTrainedModel, sites: dict[str, list[SiteRecord]], tolerance: float
) -> tuple[str, float, float] | None:
    """Path, error and tolerance of the module that differs most, given equal input; None if there is none.

    Routers choose freely here: the same bits give the same choice, so that a router that was changed shows.
    """
    errors = {
        path: relative_error(
            torch.cat([_first(baked.get_submodule(path)(record.input)).flatten() for record in records]),
            torch.cat([_first(record.output).flatten() for record in records]),
        )
        for path, records in sites.items()
    }
    if not errors:
        return None
    path = max(errors, key=lambda name: errors[name])
    return path, errors[path], tolerance


def _first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a module gives, or the first of it: gpt_oss's block gives its router's weights as well."""
    return output[0] if isinstance(output, tuple) else output
