"""Pairs that a user gives: whose they are, which objectives they are of, and with which prompt form they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.pipeline import known_objectives
from alignez_bake.preference_pairs.pair_file import check_origin, read_pairs
from alignez_bake.preference_pairs.records import PairOrigin
from alignez_bake.prompts.objective import Objective, parse_objectives
from alignez_bake.prompts.prompt_form import PromptForm, prompt_form

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.preference_pairs.records import PairSet


class AskedPairs(NamedTuple):
    """A file of pairs, and what is asked of it; no model has been seen yet.

    Attributes:
        path: of the file.
        records: of the file.
        objectives: that are asked for, or that the file has.
        weights: dial of each objective.
    """

    path: Path
    records: PairSet
    objectives: tuple[Objective, ...]
    weights: dict[str, float]

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the pairs were made, as their header says; empty for pairs of a user's own."""
        return {} if self.records.header is None else self.records.header.settings

    def form_for(self, lm: LanguageModel, template: str | None) -> PromptForm:
        """The prompt form that the pairs were made with, unless the user says another.

        Args:
            lm: the model.
            template: the user's.

        Raises:
            BadInputError: pairs of another model, or another prompt form than theirs.
        """
        if self.records.header is not None:
            check_origin(self.records.header.origin, PairOrigin(lm.folder.fingerprint, lm.tokenizer_sha256), self.path)
        made_with = self.settings.get("prompt_form", {})
        form = prompt_form(lm.tokenizer, made_with.get("template") if template is None else template)
        if made_with and form.settings != made_with:
            raise BadInputError(
                f"{self.path} was made with another prompt form ({made_with}) than this one ({form.settings}): use the "
                "same --prompt-template for both"
            )
        return form


def read_asked_pairs(path: Path, *, objective: str | None, objectives_file: Path | None) -> AskedPairs:
    """Read a file of pairs.

    Args:
        path: of the pairs.
        objective: `name[=weight],...`; all that the pairs have unless given. Pairs that name none count as the first
            of these, or as `helpful`.
        objectives_file: objectives of the user's own.

    Raises:
        BadInputError: a file that cannot be read, or an unknown objective.
    """
    given = None if objective is None else objective.split(",", maxsplit=1)[0].partition("=")[0].strip()
    records = read_pairs(path, default_objective=given or "helpful")
    settings = {} if records.header is None else records.header.settings
    recorded = {entry["name"]: Objective(**entry) for entry in settings.get("objectives", [])}
    known = {**recorded, **known_objectives(objectives_file)}
    names = dict.fromkeys(record.objective for record in records.records)
    weights = dict.fromkeys(names, 1.0) if objective is None else parse_objectives(objective, known)
    if missing := [name for name in weights if name not in known]:
        raise BadInputError(f"objective {missing[0]!r} of {path} is unknown: describe it with --objectives-file")
    return AskedPairs(path, records, tuple(known[name] for name in weights), weights)
