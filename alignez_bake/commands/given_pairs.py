"""Pairs that a user gives: whose they are, which objectives they are of, and with which prompt form they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.pipeline import known_objectives
from alignez_bake.preference_pairs.pair_file import check_origin, read_pairs
from alignez_bake.preference_pairs.records import PairOrigin
from alignez_bake.prompts.objective import Objective, parse_objectives
from alignez_bake.prompts.prompt_form import PromptForm, prompt_form

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.preference_pairs.records import PairSet


class GivenPairs(NamedTuple):
    """A file of pairs that fits a model.

    Attributes:
        records: of the file.
        objectives: that are asked for, or that the file has.
        weights: dial of each objective.
        form: with which the pairs were made, or the user's.
    """

    records: PairSet
    objectives: tuple[Objective, ...]
    weights: dict[str, float]
    form: PromptForm


def read_given_pairs(
    lm: LanguageModel,
    path: Path,
    *,
    objective: str | None = None,
    objectives_file: Path | None = None,
    prompt_template: str | None = None,
) -> GivenPairs:
    """Read pairs for a model.

    Args:
        lm: the model.
        path: of the pairs.
        objective: `name[=weight],...`; all that the pairs have unless given. Pairs that name none count as the first
            of these, or as `helpful`.
        objectives_file: objectives of the user's own.
        prompt_template: what the file says unless given.

    Raises:
        BadInputError: a file that cannot be read, pairs of another model, an unknown objective, or another prompt form
            than the file's.
    """
    given = None if objective is None else objective.split(",", maxsplit=1)[0].partition("=")[0].strip()
    records = read_pairs(path, default_objective=given or "helpful")
    if records.header is not None:
        check_origin(records.header.origin, PairOrigin(lm.folder.fingerprint, lm.tokenizer_sha256), path)
    settings = {} if records.header is None else records.header.settings
    recorded = {entry["name"]: Objective(**entry) for entry in settings.get("objectives", [])}
    known = {**recorded, **known_objectives(objectives_file)}
    names = dict.fromkeys(record.objective for record in records.records)
    weights = dict.fromkeys(names, 1.0) if objective is None else parse_objectives(objective, known)
    if missing := [name for name in weights if name not in known]:
        raise BadInputError(f"objective {missing[0]!r} of {path} is unknown: describe it with --objectives-file")
    made_with = settings.get("prompt_form", {})
    form = prompt_form(lm.tokenizer, made_with.get("template") if prompt_template is None else prompt_template)
    if made_with and form.settings != made_with:
        raise BadInputError(
            f"{path} was made with another prompt form ({made_with}) than this one ({form.settings}): use the same "
            "--prompt-template for both"
        )
    return GivenPairs(records, tuple(known[name] for name in weights), weights, form)
