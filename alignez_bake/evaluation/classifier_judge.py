"""A classifier or reward model from a folder as a judge: safetensors only, and no code of the folder's own."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForSequenceClassification

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.protocol import judgements_by_score
from alignez_bake.language_model.loading import check_finite, quiet_transformers, tokenizer_of
from alignez_bake.model_folder import read_config
from alignez_bake.safetensors_io.fingerprint import config_sha256, tensors_sha256
from alignez_bake.safetensors_io.reader import open_folder
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from alignez_bake.evaluation.protocol import AnswerSet, Judgement

Reads = Literal["both", "answer"]

_CLASS_SUFFIX: Final = "ForSequenceClassification"
_LOADING_ERRORS: Final = (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError)
_SETS_PER_BATCH: Final = 4
_NO_LIMIT: Final = 10**9  # tokenizers without a limit of their own say 1e30


class _Encoded(NamedTuple):
    """One text as a classifier reads it: token ids, segments where the tokenizer has them, and whether it was cut."""

    ids: tuple[int, ...]
    segments: tuple[int, ...] | None
    cut: bool


@dataclass(frozen=True, eq=False)
class ClassifierJudge:
    """Scores of a sequence-classification model; made by `classifier_judge`.

    One logit is a reward, any real number. Of two labels or more the score is the probability of one: softmax over
    the labels, or that label's sigmoid where the config says that labels do not exclude each other.

    Attributes:
        folder: of the model.
        config: its config.
        label: index of the label whose probability is the score; None: the one logit is.
        good_above: the score above which an answer is good.
        reads: query and answer, or the answer alone.
        device: where it runs.
        batch_size: texts that run together, if they have the same length.
    """

    folder: Path
    config: PretrainedConfig
    label: int | None
    good_above: float
    reads: Reads
    device: str
    batch_size: int

    @cached_property
    def settings(self) -> dict[str, Any]:
        """As `AnswerJudge.settings`."""
        return {
            "kind": "classifier" if self.label is not None else "reward model",
            "folder": str(self.folder),
            "config_sha256": config_sha256(read_config(self.folder)),
            "tensors_sha256": tensors_sha256(open_folder(self.folder)),
            "label": None if self.label is None else str(self.config.id2label[self.label]),
            "good_above": self.good_above,
            "reads": self.reads,
        }

    @property
    def together(self) -> int:
        """As `AnswerJudge.together`; more than a batch, because only texts of one length share one."""
        return _SETS_PER_BATCH * self.batch_size

    def check(self) -> None:
        """The tokenizer loads; the model does when it is needed, so that it takes no memory beside the others."""
        self.encoded("a query", "an answer")

    def judge(self, sets: Sequence[AnswerSet]) -> list[Judgement]:
        """As `AnswerJudge.judge`; equal answers to a query run once, so that they tie.

        Raises:
            BadInputError: the folder does not load, or gives a score that is not finite.
        """
        encoded = {
            (query["query"], answer): self.encoded(query["query"], answer)
            for query, answers in sets
            for answer in answers.values()
        }
        scores = dict(zip(encoded, self._scores(list(encoded.values())), strict=True))
        judged = judgements_by_score(
            sets,
            [{model: scores[query["query"], answer] for model, answer in answers.items()} for query, answers in sets],
        )
        cuts = [sum(encoded[query["query"], answer].cut for answer in answers.values()) for query, answers in sets]
        return [replace(judgement, cut=cut) for judgement, cut in zip(judged, cuts, strict=True)]

    def encoded(self, query: str, answer: str) -> _Encoded:
        """A text as the model reads it: its chat template with both turns, else query and answer as a pair.

        Raises:
            BadInputError: the tokenizer does not load, or its chat template fails.
        """
        text = answer.strip()
        if self.reads == "both" and self.tokenizer.chat_template is not None:
            turns = [{"role": "user", "content": query}, {"role": "assistant", "content": text}]
            try:
                prompt = self.tokenizer.apply_chat_template(turns, tokenize=False)
            except (TemplateError, ValueError, TypeError, KeyError) as error:
                raise BadInputError(f"the chat template of the judge {self.folder} fails: {error}") from error
            return self._encode((prompt,), special=False)
        return self._encode((text,) if self.reads == "answer" else (query, text), special=True)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        return tokenizer_of(self.folder)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, loaded when it is first needed.

        Raises:
            BadInputError: it does not load, or lacks tensors, its head among them.
        """
        try:
            with quiet_transformers():
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    self.folder,
                    dtype="auto",
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
                model = model.to(self.device)
        except torch.OutOfMemoryError as error:
            raise BadInputError(f"the judge {self.folder} does not fit into the memory of {self.device}") from error
        except _LOADING_ERRORS as error:
            raise BadInputError(f"the judge {self.folder} does not load: {shown(str(error))}") from error
        missing = sorted(map(str, info.get("missing_keys", ())))
        if missing:
            raise BadInputError(
                f"the judge {self.folder} lacks tensors, which would be random: {', '.join(missing[:5])}; it is no "
                "classifier, or not a complete one"
            )
        model.eval().requires_grad_(False)
        check_finite(model)
        # Batches hold texts of one length: no token is padding, not even one that has the padding's id.
        model.config.get_text_config().pad_token_id = -1
        return model

    def _encode(self, texts: tuple[str, ...], *, special: bool) -> _Encoded:
        settings = {"add_special_tokens": special, "verbose": False}
        encoding = self.tokenizer(*texts, **settings)
        limit = min(
            self.tokenizer.model_max_length or _NO_LIMIT,
            getattr(self.config, "max_position_embeddings", None) or _NO_LIMIT,
        )
        cut = len(encoding["input_ids"]) > limit
        if cut:
            encoding = self.tokenizer(*texts, truncation=True, max_length=limit, **settings)
        vocabulary = self.config.get_text_config().vocab_size
        if max(encoding["input_ids"], default=0) >= vocabulary:
            raise BadInputError(
                f"the tokenizer of the judge {self.folder} gives id {max(encoding['input_ids'])}, but the model knows "
                f"only {vocabulary}: they do not belong together"
            )
        segments = encoding.get("token_type_ids")
        return _Encoded(tuple(encoding["input_ids"]), None if segments is None else tuple(segments), cut)

    def _scores(self, texts: Sequence[_Encoded]) -> list[float]:
        scores = [math.nan] * len(texts)
        for places in self._batches(texts):
            inputs = {"input_ids": torch.tensor([texts[place].ids for place in places])}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if texts[places[0]].segments is not None:
                inputs["token_type_ids"] = torch.tensor([texts[place].segments for place in places])
            with torch.inference_mode():
                logits = self.model(**{name: value.to(self.device) for name, value in inputs.items()}).logits.float()
            for place, score in zip(places, self._score(logits).tolist(), strict=True):
                scores[place] = score
        if not all(map(math.isfinite, scores)):
            raise BadInputError(f"the judge {self.folder} gives scores that are not finite: use another one")
        return scores

    def _score(self, logits: torch.Tensor) -> torch.Tensor:
        """[texts, labels] -> [texts]."""
        if self.label is None:
            return logits[:, 0]
        if self.config.problem_type == "multi_label_classification":
            return torch.sigmoid(logits[:, self.label])
        return torch.softmax(logits, dim=-1)[:, self.label]

    def _batches(self, texts: Sequence[_Encoded]) -> Iterator[list[int]]:
        """Places of texts of one length, which need no padding: not every classifier takes it on the same side."""
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for place, text in enumerate(texts):
            if not text.ids:
                raise BadInputError(
                    f"the judge {self.folder} reads no token of an empty answer: use --judge-reads both"
                )
            by_length[len(text.ids)].append(place)
        for length in sorted(by_length, reverse=True):
            places = by_length[length]
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size]


def classifier_judge(
    folder: Path,
    *,
    label: str | None = None,
    threshold: float | None = None,
    reads: Reads = "both",
    device: str = "cpu",
    batch_size: int = 16,
) -> ClassifierJudge:
    """A judge from a model folder; the weights are loaded later.

    Args:
        folder: config.json with a class that ends in ForSequenceClassification, tokenizer, safetensors.
        label: which label's probability is the score; needed where there are two or more, and only there.
        threshold: the score above which an answer is good; unless given 0.5 of probabilities and 0 of rewards.
        reads: what it is shown.
        device: where it runs.
        batch_size: texts that run together.

    Raises:
        BadInputError: no such folder, no classifier, no safetensors, a label that it does not have, or none given.
    """
    classes = read_config(folder).get("architectures") or []
    if not isinstance(classes, list) or not any(str(name).endswith(_CLASS_SUFFIX) for name in classes):
        raise BadInputError(
            f"judge {folder} is no classifier: its config.json names the class {shown(classes)}, and none that ends "
            f"in {_CLASS_SUFFIX}"
        )
    open_folder(folder)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise BadInputError(f"judge {folder}: transformers cannot read its config: {shown(str(error))}") from error
    index = _label_index(folder, config, label)
    good_above = (0.0 if index is None else 0.5) if threshold is None else threshold
    return ClassifierJudge(folder, config, index, good_above, reads, device, batch_size)


def _label_index(folder: Path, config: PretrainedConfig, label: str | None) -> int | None:
    names = {int(index): str(name) for index, name in config.id2label.items()}
    if len(names) == 1:
        if label is not None:
            raise BadInputError(f"judge {folder} has one logit, a reward, and no labels: leave --judge-label out")
        return None
    listed = ", ".join(shown(names[index]) for index in sorted(names)[:20])
    if label is None:
        raise BadInputError(
            f"judge {folder} has {len(names)} labels: name the good one with --judge-label, of {listed}"
        )
    found = [index for index, name in names.items() if name == label]
    if len(found) != 1:
        raise BadInputError(f"judge {folder} has no label {label!r} of its own: it has {listed}")
    return found[0]
