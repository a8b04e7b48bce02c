"""`explain --feasibility`: run the base before anything is made, and say whether alignment is likely to help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignez_bake.commands.given_pairs import read_asked_pairs
from alignez_bake.feasibility.assess import MOST_PAIRS, Feasibility, assess, spread
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.pipeline import Asked, read_asked, token_limits, write_own_pairs
from alignez_bake.preference_pairs.generation import bare_prompts
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.safetensors_io.finite import check_finite_tensors

if TYPE_CHECKING:
    from alignez_bake.commands.given_pairs import AskedPairs
    from alignez_bake.feasibility.settings import FeasibilitySettings
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class BaseFeasibility:
    """What was found.

    Attributes:
        objectives: by name.
        note: says if answers were shorter than the paper's, or is empty.
    """

    objectives: dict[str, Feasibility]
    note: str

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {"note": self.note, **{name: found.to_json() for name, found in self.objectives.items()}}


def assess_base(base: ModelFolder, settings: FeasibilitySettings, progress: Progress | None = None) -> BaseFeasibility:
    """Load the base, let it write pairs unless there are some, and assess it. Nothing is kept on disk.

    Raises:
        BadInputError: anything that is refused.
    """
    settings.check(runs=True)
    progress = progress or NoProgress()
    # Before the long work, as far as it can be known then.
    given: AskedPairs | None = None
    if settings.pairs is None:
        asked = read_asked(settings.objective or "helpful", settings.objectives_file, settings.queries)
        asked = replace(asked, queries=tuple(spread(asked.queries, MOST_PAIRS)))
    else:
        given = read_asked_pairs(settings.pairs, objective=settings.objective, objectives_file=settings.objectives_file)
        queries = {record.query["query"]: record.query for record in given.records.records}
        asked = Asked(given.objectives, given.weights, tuple(queries.values()), 0)
    check_finite_tensors(base.tensors, progress=progress)
    lm = load_language_model(base, device=settings.device, trust_remote_code=settings.trust_remote_code)
    if given is None:
        form = prompt_form(lm.tokenizer, settings.prompt_template)
        records, limits = write_own_pairs(
            lm, asked, form, None, batch_size=settings.batch_size, seed=settings.seed, progress=progress
        )
    else:
        form = given.form_for(lm, settings.prompt_template)
        records, limits = given.records, token_limits(lm, bare_prompts(asked.queries, asked.objectives, form))
    found = {
        objective.name: assess(
            lm,
            records.records,
            objective,
            form,
            weight=asked.weights[objective.name],
            answer_tokens=limits.answer,
            batch_size=settings.batch_size,
            seed=settings.seed,
            progress=progress,
        )
        for objective in asked.objectives
    }
    return BaseFeasibility(found, limits.note)
