"""`eval`: how much better the aligned model behaves, judged, and what that costs.

From Python it is `alignez_bake.evaluate`, because `eval` is a builtin.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.commands.evaluated_models import Sampling, open_models
from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.answers_file import answers_file
from alignez_bake.evaluation.chat_client import JudgeUnavailableError
from alignez_bake.evaluation.figures import figures
from alignez_bake.evaluation.judge_kinds import JudgeOptions, judge_named
from alignez_bake.evaluation.plot import MISSING, can_plot
from alignez_bake.evaluation.protocol import BASE, OURS, AnswerSet
from alignez_bake.evaluation.report import write_report
from alignez_bake.evaluation.sampled_answers import check_sampling
from alignez_bake.exporters.output_folder import check_output, publish, staged_output
from alignez_bake.language_model.answering import stated_positions
from alignez_bake.language_model.loading import tokenizer_of
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import read_queries
from alignez_bake.report.record import tool_name
from alignez_bake.tuning.neutral import read_neutral_texts, shipped_neutral_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.commands.evaluated_models import EvaluatedModels
    from alignez_bake.evaluation.answers_file import AnswersFile, ModelAnswers
    from alignez_bake.evaluation.figures import Figures
    from alignez_bake.evaluation.protocol import AnswerJudge, Judgement
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.prompt_form import PromptForm

ANSWER_TOKENS: Final = 200
_FEW_QUERIES: Final = 30


@dataclass(frozen=True)
class EvalResult:
    """What was found.

    Attributes:
        paths: the models' folders, by name.
        settings: of the sampling, and what tells this evaluation from others.
        judge: settings of the judge.
        figures: rates, wins, gap; None of a dry run.
        drift: by model its perplexity on neutral texts and its KL from the base there; empty of a dry run.
        notes: what a reader should know, one line each.
        out: the folder that was written, or that a dry run would write; None: none was asked for.
    """

    paths: dict[str, str]
    settings: dict[str, Any]
    judge: dict[str, Any]
    figures: Figures | None
    drift: dict[str, ModelAnswers]
    notes: tuple[str, ...]
    out: Path | None

    @property
    def dry_run(self) -> bool:
        """Whether nothing was run."""
        return self.figures is None

    def report(self) -> dict[str, Any]:
        """What `eval.json` holds: all but the place of it."""
        found = {} if self.figures is None else self.figures.as_json()
        drift = {
            name: {"perplexity": answers.perplexity, "kl_from_base": answers.kl} for name, answers in self.drift.items()
        }
        return {
            "tool": tool_name(),
            "paths": self.paths,
            "settings": self.settings,
            "judge": self.judge,
            **found,
            "drift": drift,
            "notes": list(self.notes),
        }

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            **self.report(),
            "dry_run": self.dry_run,
            "out": None if self.out is None else str(self.out),
        }


def evaluate(
    model: str | Path,
    aligned: str | Path,
    queries: str | Path,
    *,
    judge: str | None = None,
    judge_options: JudgeOptions | None = None,
    tuned: str | Path | None = None,
    out: str | Path | None = None,
    neutral: str | Path | None = None,
    prompt_template: str | None = None,
    samples: int = 1,
    max_new_tokens: int = ANSWER_TOKENS,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
    trust_remote_code: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> EvalResult:
    """Let base, aligned and tuned model answer queries, and have the answers judged.

    With `out`, answers and judgements are kept in `OUT.partial.jsonl` as they come, and the same call goes on where an
    interrupted one stopped; in the end they are part of `out`.

    Args:
        model: the base's folder or hub id.
        aligned: a result folder of any kind that runs here, or a folder of any origin with a model or an ONNX graph.
        queries: a file of queries, with the keys that the judge needs.
        judge: `rules.py:function`, the folder of a classifier or reward model, or an address of a server.
        judge_options: what else there is to say of the judge.
        tuned: the folder or hub id of a tuned model, the yardstick of the gap.
        out: folder to write the report to; whole or not at all.
        neutral: a file of texts that the edit should leave alone, one a line; shipped ones unless given.
        prompt_template: how a query becomes a prompt; the form that the result was made with unless given.
        samples: answers to each query.
        max_new_tokens: most tokens of an answer.
        temperature: 0 is greedy.
        seed: of samples, bootstrap and waits.
        batch_size: texts that run together.
        device: where models and a judge's model run.
        trust_remote_code: passed to transformers' loader, never for a judge.
        dry_run: check everything, ask a server one question, and run nothing.
        progress: counts answers and judgements.

    Raises:
        BadInputError: anything that is refused, a judge that cannot be reached or read; no score is made up.
    """
    check_sampling(
        samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size, seed=seed
    )
    progress = progress or NoProgress()
    asked = read_queries(Path(queries))
    judging = judge_named(judge, judge_options or JudgeOptions(), device=device, batch_size=batch_size, seed=seed)
    models = open_models(model, Path(aligned), tuned, device=device, trust_remote_code=trust_remote_code)
    out = None if out is None else Path(out)
    if out is not None:
        _check_out(out, models)
    template = models.aligned.template if prompt_template is None else prompt_template
    form = prompt_form(tokenizer_of(models.aligned.base.path, trust_remote_code=trust_remote_code), template)
    texts = shipped_neutral_texts() if neutral is None else read_neutral_texts(Path(neutral), form)
    sampling = Sampling(samples, max_new_tokens, temperature, batch_size, seed, template)
    settings = {
        "models_sha256": models.identity(),
        "queries": len(asked.queries),
        "queries_sha256": _sha256(asked.queries),
        "neutral_texts": len(texts),
        "neutral_texts_sha256": _sha256(texts),
        "prompt_form": form.settings,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "temperature": float(temperature),
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
    }
    judging.check()
    notes = _notes_before(asked.duplicates, len(asked.queries), out)
    if dry_run:
        return EvalResult(models.paths, settings, judging.settings, None, {}, notes, out)
    kept = None if out is None else out.with_name(f"{out.name}.partial.jsonl")
    identity = {**settings, "judge": judging.settings}
    with answers_file(kept, identity, models.names, queries=len(asked.queries), samples=samples) as file:
        models.answer(file, asked.queries, sampling, _fitting(texts, form, models, shipped=neutral is None), progress)
        sets = [
            AnswerSet(query, {name: file.models[name].answers[place][number] for name in models.names})
            for place, query in enumerate(asked.queries)
            for number in range(samples)
        ]
        _judge(file, judging, sets, progress)
        found = figures(file.judged, models.names, samples=samples, good_above=judging.good_above, seed=seed)
        notes += _notes_after(file.models, found, sampling)
        result = EvalResult(models.paths, settings, judging.settings, found, file.models, notes, out)
        if out is not None:
            _write(out, result, list(zip(sets, file.judged, strict=True)))
            file.discard()
    return result


def _check_out(out: Path, models: EvaluatedModels) -> None:
    """Refuse a place for the report where it must not be, before anything runs."""
    check_output(out, models.aligned.base.path)
    for name, path in models.paths.items():
        if out.resolve().is_relative_to(Path(path).resolve()):
            raise BadInputError(f"--out {out} lies inside the {name} model {path}: choose a folder outside of it")


def _fitting(texts: Sequence[str], form: PromptForm, models: EvaluatedModels, *, shipped: bool) -> list[str]:
    """Of shipped texts those that the base has positions for; of a user's own all: what does not fit is refused."""
    if not shipped:
        return list(texts)
    positions = stated_positions(models.aligned.base.config)
    return [text for text in texts if positions is None or len(form.text_ids(text)) <= positions]


def _judge(file: AnswersFile, judging: AnswerJudge, sets: Sequence[AnswerSet], progress: Progress) -> None:
    """Judge what is not judged yet.

    Raises:
        JudgeUnavailableError: the judge gives no reply any more; the message says what is judged and how to go on.
    """
    with progress.task("judging answers", len(sets)) as advance:
        advance(len(file.judged))
        try:
            for start in range(len(file.judged), len(sets), judging.together):
                batch = sets[start : start + judging.together]
                file.add_judged(judging.judge(batch))
                advance(len(batch))
        except JudgeUnavailableError as error:
            kept = (
                "nothing of it is kept without --out"
                if file.path is None
                else f"kept in {file.path}: the same command goes on from there"
            )
            raise JudgeUnavailableError(
                f"{error}; {len(file.judged)} of {len(sets)} answers are judged, {kept}"
            ) from None


def _notes_before(duplicates: int, queries: int, out: Path | None) -> tuple[str, ...]:
    notes = []
    if duplicates:
        notes.append(f"{duplicates} repeated queries were dropped")
    if queries < _FEW_QUERIES:
        notes.append(f"with {queries} queries the intervals say little: give {_FEW_QUERIES} or more")
    if out is not None and not can_plot():
        notes.append(MISSING)
    return tuple(notes)


def _notes_after(models: Mapping[str, ModelAnswers], found: Figures, sampling: Sampling) -> tuple[str, ...]:
    notes = []
    for name, answers in models.items():
        if answers.perplexity is None:
            notes.append(f"no perplexity of {name}: torch does not run it, or its predictions are not finite")
        if sampling.temperature > 0 and (answers.noise is None or answers.noise != models[BASE].noise):
            notes.append(f"{name} draws other random numbers than base: another tokenizer, vocabulary or runtime")
    if models[OURS].kl is None:
        notes.append("no KL of ours from the base: other vocabularies, another runtime, or a figure that is not finite")
    unjudged = sum(pair.unjudged for pair in found.pairs.values())
    if unjudged:
        notes.append(f"{unjudged} comparisons have no verdict that could be read, and count nowhere")
    if found.cut:
        notes.append(f"{found.cut} answers were too long for the judge, which read the beginning of them")
    return tuple(notes)


def _write(out: Path, result: EvalResult, judged: Sequence[tuple[AnswerSet, Judgement]]) -> None:
    assert result.figures is not None
    with staged_output(out) as staging:
        write_report(staging, result.figures, result.drift, result.report(), judged=judged, notes=result.notes)
        publish(staging, out, failed=False)


def _sha256(value: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()
