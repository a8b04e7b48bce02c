"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) by TRL: what others do with pairs.

Needs the extra `[dpo]`. Training is in fp32; what comes out is saved in the dtype of the base, as the tool's results
are.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.loading import load_language_model, load_model, quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.prompts.prompt_form import PromptForm

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@dataclass(frozen=True)
class Preference:
    """A query, the answer that is preferred, and the one that is not; both keep their leading space."""

    query: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class LoraShape:
    """Which maps get a low-rank adapter, and of which rank.

    Attributes:
        rank: of each.
        maps: names of the modules; "all-linear": every linear map but the head.
    """

    rank: int
    maps: str | tuple[str, ...] = "all-linear"

    def config(self) -> LoraConfig:
        """As peft takes it: no dropout, scale 2, as is usual."""
        from peft import LoraConfig  # noqa: PLC0415 - of an extra

        maps = self.maps if isinstance(self.maps, str) else list(self.maps)
        return LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            lora_dropout=0.0,
            target_modules=maps,
            bias="none",
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True)
class DpoSettings:
    """What a run of DPO is told.

    Attributes:
        epochs: passes over the preferences.
        learning_rate: peak; after the warm-up a cosine to zero.
        beta: how dear it is to leave the reference.
        batch_size: preferences a step.
        warm_up: share of the steps over which the rate rises from 0, which it is at the first of them.
        seed: of order and adapters.
        lora: train these adapters alone; None: all weights.
        max_steps: stop after so many; None: the epochs decide.
    """

    epochs: int
    learning_rate: float
    beta: float = 0.1
    batch_size: int = 16
    warm_up: float = 0.1
    seed: int = 0
    lora: LoraShape | None = None
    max_steps: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def check_installed(*packages: str) -> None:
    """Refuse early, with the way out.

    Args:
        packages: of the extra `[dpo]` that are needed.

    Raises:
        BadInputError: one is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise BadInputError(f"this training needs {package}: pip install 'alignez-bake[dpo]'")


def dpo_tuned(
    base: ModelFolder, preferences: Sequence[Preference], form: PromptForm, settings: DpoSettings, out: Path
) -> Path:
    """Tune a base on preferences; the base itself is the reference.

    Args:
        base: the model's folder.
        preferences: at least one.
        form: how queries become tokens.
        settings: of the training.
        out: folder to write the tuned model to, as an ordinary checkpoint; adapters are merged.

    Returns:
        `out`.

    Raises:
        BadInputError: TRL or peft is missing, no preferences, or texts that TRL would tokenise otherwise than the
            tool does.
    """
    check_installed("trl", "peft")
    if not preferences:
        raise BadInputError("no preferences to tune on")
    rows = [_row(preference, form) for preference in preferences]
    lm = load_language_model(base, dtype=torch.float32)
    lm.model.requires_grad_(requires_grad=settings.lora is None)
    # TRL and the trainer below it print; what a user should know is in the result.
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        model = _trained(lm.model, lm.tokenizer, rows, settings, scratch)
    return save_tuned(model, base, out)


def _trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, str]],
    settings: DpoSettings,
    scratch: str,
) -> PreTrainedModel:
    from datasets import Dataset  # noqa: PLC0415 - of an extra
    from trl import DPOConfig, DPOTrainer  # noqa: PLC0415

    arguments = DPOConfig(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        max_steps=-1 if settings.max_steps is None else settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warm_up,
        beta=settings.beta,
        per_device_train_batch_size=settings.batch_size,
        seed=settings.seed,
        data_seed=settings.seed,
        max_length=None,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if settings.lora is None else settings.lora.config(),
    )
    trainer.train()
    return trainer.model if settings.lora is None else trainer.model.merge_and_unload()


def save_tuned(model: PreTrainedModel, base: ModelFolder, out: Path) -> Path:
    """Save a model in the base's dtype, with the base's tokenizer.

    Args:
        model: trained, without adapters.
        base: where it came from.
        out: folder that must not hold anything else.
    """
    dtype = load_model(base).model.dtype
    with quiet_transformers():
        model.to(dtype).save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (base.path / name).is_file():
            shutil.copyfile(base.path / name, out / name)
    return out


def _row(preference: Preference, form: PromptForm) -> dict[str, str]:
    """The texts of a preference as TRL takes them, checked to become the ids that the tool makes of them.

    Raises:
        BadInputError: they become others: an own template or tokenizer merges tokens across a seam.
    """
    tokenizer = form.tokenizer
    prompt = form.prompt_text(preference.query, None)
    wanted = form.context_ids(preference.query, None)
    if tokenizer(prompt)["input_ids"] != wanted and tokenizer.bos_token is not None:
        prompt = prompt.removeprefix(tokenizer.bos_token)  # the tokenizer puts its own
    for answer in (preference.chosen, preference.rejected):
        ids = tokenizer(prompt + answer + tokenizer.eos_token)["input_ids"]
        if ids != [*wanted, *form.answer_ids(answer, eos=True)]:
            raise BadInputError(
                f"as one text the query {preference.query[:60]!r} and its answer become other tokens than one by one: "
                "DPO would train on what the model never sees; use another prompt template"
            )
    return {"prompt": prompt, "chosen": preference.chosen, "rejected": preference.rejected}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from datasets import disable_progress_bars  # noqa: PLC0415 - of an extra

    disable_progress_bars()
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with quiet_transformers():
            yield
