"""A fit whose method and strength are given, in sight of the texts that the user wants left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.pipeline import fit_edits
from alignez_bake.tuning.neutral import split_neutral
from alignez_bake.tuning.neutral_drift import NeutralDrift

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.fit_settings import FitSettings
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.pipeline import Fitted
    from alignez_bake.preference_pairs.records import PairRecord
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.objective import Objective
    from alignez_bake.prompts.prompt_form import PromptForm


def fit_named(
    lm: LanguageModel,
    records: Sequence[PairRecord],
    objectives: Sequence[Objective],
    form: PromptForm,
    settings: FitSettings,
    *,
    weights: Mapping[str, float],
    batch_size: int,
    progress: Progress,
) -> Fitted:
    """`pipeline.fit_edits`; of neutral texts, where there are some, every second one is seen and the others measured.

    Raises:
        BadInputError: as `pipeline.fit_edits` and `tuning.neutral.read_neutral_texts`; a text too long for the model.
    """
    if settings.neutral is None:
        return fit_edits(
            lm, records, objectives, form, settings, weights=weights, batch_size=batch_size, progress=progress
        )
    neutral = split_neutral(settings.neutral, form, seen=True)
    drift = NeutralDrift(lm, neutral.measured, form, batch_size=batch_size)
    fitted = fit_edits(
        lm,
        records,
        objectives,
        form,
        settings,
        weights=weights,
        batch_size=batch_size,
        progress=progress,
        left_alone=neutral.left_alone,
    )
    return fitted.noting(
        f"the fits saw {len(neutral.left_alone)} neutral texts, to leave them alone; the other {len(neutral.measured)} "
        f"are moved by {drift(fitted.plan):.4f} nats per token"
    )
