"""Good and bad activations before and after, for the page of a whole way: recorded while the model is at hand.

Each answer follows its query without a persona, and the residual stream is read at its last token, where AlignEZ reads
it (arXiv 2406.03642, section 3). The texts are the same before and after, so that what moves is the model: before, the
base; after, the base with the fitted edits by hooks, which is what the certificate compares the result with.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from alignez_bake.capture.run import Capture
from alignez_bake.capture.spec import ANSWER_SIDES, Reading, RowsSpec
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.errors import BadInputError
from alignez_bake.preference_pairs.filters import match_pairs
from alignez_bake.report.html.pca import projection_of
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.preference_pairs.records import PairRecord
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.objective import Objective
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.report.html.page_parts import PageParts
    from alignez_bake.report.html.report_data import Projection

PICTURED_PAIRS: Final = 64
"""Pairs of each objective, the first ones: as many points of a side as can be told apart."""
PICTURED_LAYERS: Final = 3


def pictured_layers(count: int) -> list[int]:
    """The last layer and those after a third and two thirds of `count` layers, each once, in order."""
    return sorted({(count * part + PICTURED_LAYERS - 1) // PICTURED_LAYERS - 1 for part in range(1, 4)})


def with_pictures(
    shown: PageParts,
    lm: LanguageModel,
    records: Sequence[PairRecord],
    objectives: Sequence[Objective],
    *,
    form: PromptForm,
    plan: EditPlan,
    batch_size: int,
    progress: Progress,
) -> PageParts:
    """One picture for each of a few layers and each objective.

    Args:
        shown: what the page shows so far.
        lm: the base.
        records: pairs of all objectives.
        objectives: those that were fitted.
        form: how texts become ids.
        plan: the edits of all objectives, with their dials.
        batch_size: texts that run together.
        progress: counts sequences.

    Returns:
        With the pictures, and with a note for each layer that has none, which says why.

    Raises:
        BadInputError: as `Capture`, which has read the same pairs to fit the edits.
    """
    pictures: list[Projection] = []
    left_out = []
    for objective in objectives:
        pairs, _ = match_pairs(records, objective.name)
        tokenised = tokenise_pairs(pairs[:PICTURED_PAIRS], objective, form)
        capture = Capture(lm, tokenised, batch_size=batch_size, progress=progress)
        layers = pictured_layers(lm.folder.num_layers)
        specs = {
            (layer, side): RowsSpec(Site("residual", layer), Reading("plain", "output"), side)
            for layer in layers
            for side in ANSWER_SIDES
        }
        before, after = (capture(list(specs.values()), edits).rows for edits in (None, plan))
        for layer in layers:
            of_layer = [specs[layer, side] for side in ANSWER_SIDES]
            name = f"residual.{layer}" if len(objectives) == 1 else f"residual.{layer}, {objective.name}"
            rows = [recorded[spec].values for recorded in (before, after) for spec in of_layer]
            try:
                pictures.append(projection_of(name, *rows))
            except BadInputError as error:
                left_out.append(f"No picture of {name}: {error}.")
    return replace(shown, projections=tuple(pictures), notes=(*shown.notes, *left_out))
