"""Context distillation: a LoRA learns, by gradient, to predict without the persona what the base predicts under it.

Askell et al. 2021 (arXiv 2112.00861), section 2.2. With p the base's next-token distributions under the good persona
and q those of the student without it, both at the tokens of the base's own good answers and at their ends, the loss is

    mean over tokens of KL(p || q)

The teacher, the answers and the sentence of the persona are those that the ridge learns from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from alignez_bake.language_model.batching import right_padded
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.language_model.log_probabilities import iter_answer_logits
from alignez_bake.prompts.persona import persona_sentence
from examples.optimisation import Schedule
from examples.preference_tuning import check_installed, save_tuned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from peft import PeftModel

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.preference_pairs.filters import Pair
    from alignez_bake.prompts.objective import Objective
    from alignez_bake.prompts.prompt_form import PromptForm
    from examples.preference_tuning import LoraShape

_CLIP = 1.0
_TEACHER_BATCH = 64


@dataclass(frozen=True)
class DistillationSettings:
    """What a run is told.

    Attributes:
        epochs: passes over the answers.
        learning_rate: peak; warm-up over a tenth of the steps, then a cosine.
        lora: which maps are adapted.
        batch_size: answers a step.
        seed: of order and adapters.
        max_steps: stop after so many; None: the epochs decide.
    """

    epochs: int
    learning_rate: float
    lora: LoraShape
    batch_size: int = 16
    seed: int = 0
    max_steps: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Lesson:
    """One answer: the ids without persona, where the answer begins, and the teacher's log-probabilities there."""

    ids: list[int]
    start: int
    teacher: torch.Tensor


def distilled(
    base: ModelFolder,
    pairs: Sequence[Pair],
    objective: Objective,
    *,
    form: PromptForm,
    settings: DistillationSettings,
    out: Path,
) -> Path:
    """Distil the good persona into a LoRA, merge it, and save an ordinary checkpoint.

    Args:
        base: the model's folder.
        pairs: of that objective; their good answers are read.
        objective: whose good persona is the teacher's.
        form: how queries become tokens.
        settings: of the training.
        out: folder to write to.

    Returns:
        `out`.

    Raises:
        BadInputError: peft is missing.
    """
    check_installed("peft")
    from peft import get_peft_model  # noqa: PLC0415 - of an extra

    lm = load_language_model(base, dtype=torch.float32)
    lessons = _lessons(lm, pairs, objective, form)
    torch.manual_seed(settings.seed)
    model = get_peft_model(lm.model, settings.lora.config())
    optimiser = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), weight_decay=0.0)
    batches = list(_batches(lessons, settings))
    schedule = Schedule(len(batches), settings.learning_rate, warm_up=max(1, len(batches) // 10))
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate(step)
        loss = _loss(model, batch, lm.pad_id)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimiser.step()
    return save_tuned(model.merge_and_unload(), base, out)


def _lessons(lm: LanguageModel, pairs: Sequence[Pair], objective: Objective, form: PromptForm) -> list[_Lesson]:
    sentence = persona_sentence(objective, "good")
    plain, led, answers = [], [], []
    for pair in pairs:
        without, under = form.contexts(pair.query["query"], [None, sentence]).ids
        plain.append(without)
        led.append(under)
        answers.append(form.answer_ids(pair.good.text, eos=True))
    lessons: list[_Lesson] = []
    for place, logits in iter_answer_logits(lm, led, answers, batch_size=_TEACHER_BATCH):
        teacher = torch.log_softmax(logits, dim=-1)
        lessons.append(_Lesson([*plain[place], *answers[place]], len(plain[place]), teacher))
    return lessons


def _batches(lessons: Sequence[_Lesson], settings: DistillationSettings) -> Iterator[list[_Lesson]]:
    generator = torch.Generator().manual_seed(settings.seed)
    made = 0
    for _ in range(settings.epochs):
        order = torch.randperm(len(lessons), generator=generator).tolist()
        for start in range(0, len(order), settings.batch_size):
            if made == settings.max_steps:
                return
            made += 1
            yield [lessons[place] for place in order[start : start + settings.batch_size]]


def _loss(model: PeftModel, batch: Sequence[_Lesson], pad_id: int) -> torch.Tensor:
    """Mean KL(teacher || student) over all answer tokens of the batch, in nats."""
    padded = right_padded([lesson.ids for lesson in batch], pad_id, model.device)
    logits = model(
        input_ids=padded.input_ids,
        attention_mask=padded.attention_mask,
        position_ids=padded.position_ids,
        use_cache=False,
    ).logits
    student = torch.cat([logits[row, lesson.start - 1 : len(lesson.ids) - 1] for row, lesson in enumerate(batch)])
    q = torch.log_softmax(student.float(), dim=-1)
    p = torch.cat([lesson.teacher for lesson in batch])
    return (p.exp() * (p - q)).sum(dim=-1).mean()
