"""The two ways to ask: in full, for `explain --feasibility`, and the cheap part at the start of every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from alignez_bake.capture.run import Capture
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.feasibility.contrast import PersonaContrast
from alignez_bake.feasibility.layers import layer_reports
from alignez_bake.feasibility.obedience import (
    ANSWERS,
    WrittenAnswers,
    answers_of_personas,
    obedience_of,
    read_written,
    sampled_answers,
)
from alignez_bake.feasibility.pair_quality import judge_pairs, judged_pairs, pair_quality
from alignez_bake.feasibility.prediction import predict
from alignez_bake.preference_pairs.filters import match_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.feasibility.layers import LayerReport
    from alignez_bake.feasibility.obedience import Obedience
    from alignez_bake.feasibility.pair_quality import PairQuality
    from alignez_bake.feasibility.prediction import Prediction
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.preference_pairs.filters import Pair
    from alignez_bake.preference_pairs.records import PairRecord
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.objective import Objective, Side
    from alignez_bake.prompts.prompt_form import PromptForm

T = TypeVar("T")

MOST_PAIRS: Final = 100
"""That are judged and recorded."""
CHEAP_PAIRS: Final = 24
"""That are judged at the start of a run, with as many answers without a persona beside them."""


@dataclass(frozen=True)
class Feasibility:
    """What was found for one objective.

    Attributes:
        objective: its name.
        wanted: the persona that an edit is to make permanent.
        obedience: of the base.
        pairs: what they are worth.
        layers: reports of all layers; empty where activations were not recorded.
        prediction: what follows.
    """

    objective: str
    wanted: Side
    obedience: Obedience
    pairs: PairQuality
    layers: tuple[LayerReport, ...]
    prediction: Prediction

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            "objective": self.objective,
            "wanted": self.wanted,
            "prediction": self.prediction.to_json(),
            "obedience": self.obedience.to_json(),
            "pairs": self.pairs.to_json(),
            "layers": [report.to_json() for report in self.layers],
        }


def assess(
    lm: LanguageModel,
    records: Sequence[PairRecord],
    objective: Objective,
    form: PromptForm,
    *,
    weight: float = 1.0,
    answer_tokens: int,
    batch_size: int,
    seed: int,
    answers: int = ANSWERS,
    progress: Progress | None = None,
) -> Feasibility:
    """In full: answers sampled under both personas and none, pairs judged, every layer probed.

    Args:
        lm: the base.
        records: pairs of any objectives.
        objective: the one that is meant.
        form: how queries become tokens.
        weight: its dial; negative where less of it is wanted.
        answer_tokens: most tokens of a sampled answer.
        batch_size: texts that run together.
        seed: of samples, split and resamples.
        answers: under each persona and under none.
        progress: told how far the recording is.

    Raises:
        BadInputError: too few pairs (the message has the counts), a text too long for the model, activations or
            predictions that are not finite, or activations that are the same for all answers.
    """
    pairs, filters = match_pairs(records, objective.name)
    contrast = PersonaContrast(lm, objective, form, _wanted(weight), batch_size)
    chosen = spread(pairs, MOST_PAIRS)
    queries = spread(list(dict.fromkeys(pair.query["query"] for pair in pairs)), answers)
    written = answers_of_personas(contrast, queries, answers=answers, seed=seed, most_tokens=answer_tokens)
    capture = Capture(lm, tokenise_pairs(chosen, objective, form), batch_size=batch_size, progress=progress)
    layers = layer_reports(capture, range(lm.folder.num_layers), [pair.query["query"] for pair in chosen], seed=seed)
    obedience = obedience_of(written, read_written(contrast, written), seed=seed)
    quality = pair_quality(pairs, filters, judge_pairs(contrast, chosen), own=_own(records, objective), seed=seed)
    return _found(contrast, obedience, quality, layers)


def assess_cheaply(
    lm: LanguageModel,
    records: Sequence[PairRecord],
    objectives: Sequence[Objective],
    form: PromptForm,
    *,
    weights: Mapping[str, float],
    answer_tokens: int,
    batch_size: int,
    seed: int,
) -> dict[str, Feasibility]:
    """The part that costs little once there are pairs: some of them judged, and as many answers without a persona.

    Its obedience is that of the pairs' answers, each of which was written under a characteristic of its own, and no
    layer is probed. Arguments, errors: as `assess`, for each objective with its dial.
    """
    found = {}
    for objective in objectives:
        pairs, filters = match_pairs(records, objective.name)
        contrast = PersonaContrast(lm, objective, form, _wanted(weights[objective.name]), batch_size)
        chosen = spread(pairs, CHEAP_PAIRS)
        queries = tuple(pair.query["query"] for pair in chosen)
        plain = sampled_answers(contrast, queries, None, answers=len(chosen), seed=seed, most_tokens=answer_tokens)
        good, bad = (tuple(form.answer_ids(text) for text in side) for side in zip(*map(_answers, chosen), strict=True))
        by_good = contrast.wanted == "good"
        none_empty = (False,) * len(chosen)
        written = WrittenAnswers(
            queries,
            good if by_good else bad,
            bad if by_good else good,
            plain.ids,
            (none_empty, none_empty, plain.empty),
            "pairs",
        )
        readings = read_written(contrast, written)
        both = (readings.wanted, readings.other) if by_good else (readings.other, readings.wanted)
        obedience = obedience_of(written, readings, seed=seed)
        judged = judged_pairs(contrast.wanted, (good, bad), both)
        quality = pair_quality(pairs, filters, judged, own=_own(records, objective), seed=seed)
        found[objective.name] = _found(contrast, obedience, quality, ())
    return found


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread and in their order."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def _wanted(weight: float) -> Side:
    """The persona that a dial asks for; at 0 the good one, of which it could ask more."""
    return "bad" if weight < 0 else "good"


def _own(records: Sequence[PairRecord], objective: Objective) -> bool:
    """Whether every answer was sampled by this tool: pairs of one's own have no seed."""
    return all(record.seed is not None for record in records if record.objective == objective.name)


def _answers(pair: Pair) -> tuple[str, str]:
    return pair.good.text, pair.bad.text


def _found(
    contrast: PersonaContrast, obedience: Obedience, quality: PairQuality, layers: tuple[LayerReport, ...]
) -> Feasibility:
    prediction = predict(obedience, quality, layers, wanted=contrast.wanted)
    return Feasibility(contrast.objective.name, contrast.wanted, obedience, quality, layers, prediction)
