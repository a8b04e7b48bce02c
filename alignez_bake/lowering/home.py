"""Where edits that the base has no room for can live natively: an equivalent model with the biases and units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignez_bake.lowering.decide import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.edit import Edit
    from alignez_bake.lowering.fold import Write
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Site


@dataclass(frozen=True)
class Home:
    """The model into whose tensors the edits go.

    Attributes:
        model: the base, or an equivalent model.
        refused: sites that it has no room for either, with the reason.
        writes: parts of its tensors that hold hidden units.
        changes: what makes it another model than the base.
        exactness: of the sites whose edits are hidden units.
    """

    model: ModelFolder
    refused: Mapping[Site, Refusal] = field(default_factory=dict)
    writes: Mapping[str, tuple[Write, ...]] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    exactness: Mapping[Site, str] = field(default_factory=dict)

    def folded_parts(self, edit: Edit) -> tuple[Edit, ...]:
        """What of an edit is folded into the home's tensors."""
        return (edit,)


def find_home(
    model: ModelFolder, wanted: Mapping[Site, Sequence[Edit]], dials: Mapping[str, float], *, approximate: bool
) -> Home:
    """TODO."""
    return Home(model, {site: Refusal("no equivalent model is known") for site in wanted})


def unit_edits(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits of one site that hidden units of the MLP can carry."""
    return ()
