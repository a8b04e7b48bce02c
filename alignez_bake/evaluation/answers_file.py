"""A file that grows while an evaluation runs: the same command goes on from there, and asks nobody twice.

The first line says what is evaluated and how; then comes a line for each model with its answers, then one for each
judged set of answers, in order. Each piece is written by one call and synced; half a line at the end is cut off.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.protocol import Judgement, pair_name, pairs_of
from alignez_bake.exporters.output_folder import parents_made
from alignez_bake.growing_file import append, cut_behind, locked_file, what_changed, whole_lines
from alignez_bake.safetensors_io.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from io import BufferedRandom
    from pathlib import Path

_HEADER_KEY: Final = "alignez_eval"
_FORMAT: Final = 1
_MAX_BYTES: Final = 1024 * 1024 * 1024


@dataclass(frozen=True)
class ModelAnswers:
    """What one model gave.

    Attributes:
        model: its name, of `protocol`.
        answers: for each query its answers.
        perplexity: on neutral texts; None where it was not measured.
        kl: KL(base || model) on them, in nats per token; likewise.
        noise: tokenizer and size of the vocabulary, with which models draw from the same noise; None: it draws its own.
    """

    model: str
    answers: tuple[tuple[str, ...], ...]
    perplexity: float | None = None
    kl: float | None = None
    noise: str | None = None


@dataclass
class AnswersFile:
    """An open, locked file of an evaluation, or none: then nothing is kept.

    Attributes:
        path: of the file; None: nothing is kept.
        models: what models gave, in this run or an earlier one.
        judged: what was judged, likewise; by query, then by sample.
        file: the open file.
    """

    path: Path | None
    models: dict[str, ModelAnswers] = field(default_factory=dict)
    judged: list[Judgement] = field(default_factory=list)
    file: BufferedRandom | None = None

    def add_model(self, answers: ModelAnswers) -> None:
        """Keep what a model gave; errors as `add_judged`."""
        self._append([asdict(answers)])
        self.models[answers.model] = answers

    def add_judged(self, judgements: Sequence[Judgement]) -> None:
        """Keep judgements of the next sets.

        Raises:
            BadInputError: the disk is full, or the file cannot be written any more.
        """
        start = len(self.judged)
        self._append([{"set": start + place, **judgement_json(entry)} for place, entry in enumerate(judgements)])
        self.judged += judgements

    def discard(self) -> None:
        """Remove the file: what it holds lies elsewhere now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        if self.file is not None:
            append(self.file, self.path, b"".join(_line(entry) for entry in entries))


@contextmanager
def answers_file(
    path: Path | None, settings: Mapping[str, Any], models: Sequence[str], *, queries: int, samples: int
) -> Iterator[AnswersFile]:
    """Open a new file, or one that an interrupted run of the same command left.

    Args:
        path: the file; None: nothing is kept on disk.
        settings: what tells this evaluation from others, as JSON values.
        models: names, in the order in which they answer.
        queries: how many each model answers.
        samples: how often each.

    Raises:
        BadInputError: the file is of another evaluation (the message names what differs), was changed by hand, cannot
            be written, or another run is writing to it.
    """
    if path is None:
        yield AnswersFile(None)
        return
    with parents_made(path), locked_file(path, way_out="choose another --out", follow_links=False) as file:
        opened = AnswersFile(path, file=file)
        _take_up(opened, file, path, settings, models, queries=queries, samples=samples)
        try:
            yield opened
        finally:
            if not opened.models:  # refused before anything came of it
                opened.discard()


def judgement_json(judgement: Judgement) -> dict[str, Any]:
    """A judgement as JSON values."""
    return {
        "scores": dict(judgement.scores),
        "preferences": {pair_name(pair): value for pair, value in judgement.preferences.items()},
        "order_dependent": judgement.order_dependent,
        "unreadable": list(judgement.unreadable),
        "cut": judgement.cut,
    }


def _take_up(
    opened: AnswersFile,
    file: BufferedRandom,
    path: Path,
    settings: Mapping[str, Any],
    models: Sequence[str],
    *,
    queries: int,
    samples: int,
) -> None:
    size = os.fstat(file.fileno()).st_size
    if size > _MAX_BYTES:
        raise BadInputError(f"{path} has {size} bytes: at most {_MAX_BYTES} are read; remove it to begin anew")
    first = _line({_HEADER_KEY: _FORMAT, "settings": settings})
    whole = whole_lines(file, first, lambda line: _other_file(line, path, settings))
    for number, line in enumerate(whole, start=2):
        place = f"{path}, line {number}"
        entry = parse_object(line, place)
        if len(opened.models) < len(models):
            answers = _parsed_model(entry, models[len(opened.models)], queries, samples)
            if answers is None:
                raise _changed(place)
            opened.models[answers.model] = answers
        else:
            judgement = _parsed_judgement(entry, len(opened.judged), models)
            if judgement is None or len(opened.judged) >= queries * samples:
                raise _changed(place)
            opened.judged.append(judgement)
    cut_behind(file, first, whole)


def _parsed_model(entry: Mapping[str, Any], model: str, queries: int, samples: int) -> ModelAnswers | None:
    """The answers of the model whose turn it is; None for anything else."""
    if entry.keys() != {"model", "answers", "perplexity", "kl", "noise"} or entry["model"] != model:
        return None
    answers, noise = entry["answers"], entry["noise"]
    fits = (
        _is_list(answers, queries)
        and all(_is_list(of_query, samples) for of_query in answers)
        and all(isinstance(answer, str) for of_query in answers for answer in of_query)
        and all(entry[name] is None or _is_number(entry[name]) for name in ("perplexity", "kl"))
        and (noise is None or isinstance(noise, str))
    )
    return ModelAnswers(model, tuple(map(tuple, answers)), entry["perplexity"], entry["kl"], noise) if fits else None


def _parsed_judgement(entry: Mapping[str, Any], number: int, models: Sequence[str]) -> Judgement | None:
    """The judgement of set `number`; None for anything else."""
    pairs = {pair_name(pair): pair for pair in pairs_of(models)}
    counts = ("order_dependent", "cut")
    if entry.keys() != {"set", "scores", "preferences", "unreadable", *counts} or entry["set"] != number:
        return None
    scores, preferences, unreadable = entry["scores"], entry["preferences"], entry["unreadable"]
    fits = (
        isinstance(scores, dict)
        and (not scores or scores.keys() == set(models))
        and all(map(_is_number, scores.values()))
        and isinstance(preferences, dict)
        and preferences.keys() == pairs.keys()
        and all(map(_is_preference, preferences.values()))
        and isinstance(unreadable, list)
        and all(isinstance(text, str) for text in unreadable)
        and all(type(entry[name]) is int for name in counts)
    )
    if not fits:
        return None
    of_pairs = {pairs[name]: value for name, value in preferences.items()}
    return Judgement(scores, of_pairs, entry["order_dependent"], tuple(unreadable), entry["cut"])


def _other_file(line: bytes, path: Path, settings: Mapping[str, Any]) -> BadInputError:
    """Why a file that does not begin with this run's header cannot be taken up."""
    try:
        entry = parse_object(line, f"{path}, line 1")
    except BadInputError:
        entry = {}
    theirs = entry.get("settings")
    if entry.get(_HEADER_KEY) != _FORMAT or not isinstance(theirs, dict):
        return BadInputError(f"{path} is in the way: it is no evaluation that this tool began; choose another --out")
    ours = json.loads(json.dumps(settings))
    return BadInputError(
        f"{path} was begun with other settings ({what_changed(theirs, ours)}): use those, choose "
        "another --out, or remove the file"
    )


def _changed(place: str) -> BadInputError:
    return BadInputError(f"{place} is not what belongs there: the file was changed; remove it to begin anew")


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _is_preference(value: object) -> bool:
    return value is None or (type(value) is int and -1 <= value <= 1)  # not True, which equals 1


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
