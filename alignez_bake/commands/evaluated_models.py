"""The models of an evaluation: base, aligned and tuned, what tells them from others, and what they answer."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.commands.aligned_model import answering_folder, open_aligned
from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.answers_file import ModelAnswers
from alignez_bake.evaluation.drift import kl_on_texts
from alignez_bake.evaluation.perplexity import perplexity_on_texts
from alignez_bake.evaluation.protocol import BASE, OURS, TUNED
from alignez_bake.evaluation.sampled_answers import sampled_answers
from alignez_bake.exporters.output_folder import OURS as OURS_FOLDER
from alignez_bake.hub.download import base_folder
from alignez_bake.language_model.answering import TorchAnswering
from alignez_bake.model_folder import open_model_folder
from alignez_bake.prompts.prompt_form import prompt_form

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from alignez_bake.commands.aligned_model import AlignedModel
    from alignez_bake.evaluation.answers_file import AnswersFile
    from alignez_bake.language_model.answering import Answering
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.queries import Query

_EDGE_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Sampling:
    """How each model answers: settings of `sampled_answers`, and the template of its prompts.

    Attributes:
        samples: answers to each query.
        max_new_tokens: most tokens of an answer.
        temperature: 0 is greedy.
        batch_size: answers, or neutral texts, that run together.
        seed: of all samples.
        template: how a query becomes a prompt; None: the tokenizer's chat template, or AlignEZ's form.
    """

    samples: int
    max_new_tokens: int
    temperature: float
    batch_size: int
    seed: int
    template: str | None


@dataclass(frozen=True)
class EvaluatedModels:
    """The models, opened and not loaded; made by `open_models`.

    Attributes:
        aligned: ours, with its base.
        tuned: the yardstick, if there is one.
        device: where they run.
        trust_remote_code: passed to transformers' loader.
    """

    aligned: AlignedModel
    tuned: ModelFolder | None
    device: str
    trust_remote_code: bool

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they answer and are shown."""
        return (BASE, OURS) if self.tuned is None else (BASE, OURS, TUNED)

    @property
    def paths(self) -> dict[str, str]:
        """Their folders."""
        found = {BASE: str(self.aligned.base.path), OURS: str(self.aligned.path)}
        return found if self.tuned is None else {**found, TUNED: str(self.tuned.path)}

    def identity(self) -> dict[str, Any]:
        """What tells them from other models."""
        return {
            BASE: self.aligned.base.fingerprint.tensors_sha256,
            OURS: _folder_sha256(self.aligned.path),
            TUNED: None if self.tuned is None else self.tuned.fingerprint.tensors_sha256,
        }

    def answer(
        self, file: AnswersFile, queries: Sequence[Query], sampling: Sampling, texts: Sequence[str], progress: Progress
    ) -> None:
        """Let every model answer that has not yet, and measure what the edit does to neutral texts.

        Base and aligned model are in memory together, for the divergence between them; the tuned one comes after them.

        Args:
            file: takes the answers.
            queries: what is asked.
            sampling: how.
            texts: neutral ones.
            progress: counts answers.

        Raises:
            BadInputError: a model that does not load or run here, a query or text that is too long for it.
        """
        answers = partial(_answers, queries=queries, sampling=sampling, texts=texts, progress=progress)
        if not {BASE, OURS} <= file.models.keys():
            self._answer_both(file, answers)
        if self.tuned is not None and TUNED not in file.models:
            tuned = answering_folder(self.tuned, device=self.device, trust_remote_code=self.trust_remote_code)
            file.add_model(answers(TUNED, tuned, None))

    def _answer_both(self, file: AnswersFile, answers: Callable[..., ModelAnswers]) -> None:
        """Base and ours; a function of its own, so that neither stays in memory."""
        # Ours first: what does not run here is found before anything is sampled.
        ours = self.aligned.load(device=self.device, trust_remote_code=self.trust_remote_code)
        base = self.aligned.load_base(device=self.device, trust_remote_code=self.trust_remote_code)
        if BASE not in file.models:
            file.add_model(answers(BASE, base, None))
        if OURS not in file.models:
            file.add_model(answers(OURS, ours, base))


def open_models(
    model: str | Path,
    aligned: Path,
    tuned: str | Path | None,
    *,
    device: str,
    trust_remote_code: bool,
) -> EvaluatedModels:
    """Open the models, without loading them.

    Args:
        model: the base's folder or hub id.
        aligned: a result of any kind that runs here, or a folder of any origin.
        tuned: a tuned model's folder or hub id.
        device: where they will run.
        trust_remote_code: whether code of theirs may run.

    Raises:
        BadInputError: one is no model, the result is of another base, or of a kind that does not run here.
    """
    if not aligned.is_dir():
        raise BadInputError(f"no such result folder: {aligned}")
    opened = open_aligned(aligned, model)
    result = opened.opened
    if result is not None and result.exporter.highest_level == "tensors":
        # Says why, and what to do; it never loads.
        result.exporter.reload(
            opened.base, aligned, result.lowering, device=device, trust_remote_code=trust_remote_code
        )
    if result is None and not list(aligned.glob("*.onnx")):
        open_model_folder(aligned)
    yardstick = None if tuned is None else open_model_folder(base_folder(tuned, trust_remote_code=trust_remote_code))
    return EvaluatedModels(opened, yardstick, device, trust_remote_code)


def _answers(
    name: str,
    model: Answering,
    base: TorchAnswering | None,
    *,
    queries: Sequence[Query],
    sampling: Sampling,
    texts: Sequence[str],
    progress: Progress,
) -> ModelAnswers:
    form = prompt_form(model.tokenizer, sampling.template)
    perplexity, kl, noise = None, None, None
    if isinstance(model, TorchAnswering):
        lm = model.lm
        perplexity = _finite(perplexity_on_texts(lm, texts, form, batch_size=sampling.batch_size))
        noise = _noise(lm)
        if base is not None and noise == _noise(base.lm):
            kl = _finite(kl_on_texts(base.lm, lm, texts, form, batch_size=sampling.batch_size))
    answers = sampled_answers(
        model,
        queries,
        form,
        samples=sampling.samples,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        batch_size=sampling.batch_size,
        seed=sampling.seed,
        progress=progress,
    )
    return ModelAnswers(name, answers, perplexity, kl, noise)


def _noise(lm: LanguageModel) -> str:
    """Models of which this is the same read the same ids, and draw from the same noise."""
    return f"{lm.tokenizer_sha256} {lm.vocabulary_size}"


def _finite(value: float) -> float | None:
    """JSON has no infinity; a note says that the figure is missing."""
    return value if math.isfinite(value) else None


def _folder_sha256(folder: Path) -> str:
    """SHA-256 over the files of an artefact of any kind: names, sizes, first and last 64 KiB; cheap at any size."""
    digest = hashlib.sha256()
    files = [entry for place in (folder, folder / OURS_FOLDER) if place.is_dir() for entry in place.iterdir()]
    for path in sorted(files):
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(json.dumps([path.relative_to(folder).as_posix(), size]).encode("ascii") + b"\n")
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()
