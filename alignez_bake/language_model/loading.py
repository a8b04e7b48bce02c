"""Loading a causal language model and its tokenizer from a folder, completely or not at all."""

from __future__ import annotations

import hashlib
import json
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.running_dtype import running_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.model_folder import ModelFolder

_KEYS_SHOWN = 5
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_LOADING_ERRORS = (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, RuntimeError)
"""What transformers raises for a damaged or unknown folder; bugs of ours do not come from within that call."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model ready to run: in eval mode, without gradients, with finite weights.

    Attributes:
        model: the live model.
        tokenizer: its tokenizer. Padding, BOS and EOS are put by this tool, never by the tokenizer.
        architecture: where its sites lie.
        folder: where it was loaded from.
        device: where its weights and inputs live.
        unused_keys: tensors of the folder that the model does not use (drafts, vision towers).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    folder: ModelFolder
    device: torch.device
    unused_keys: tuple[str, ...] = ()

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of rows of the token embedding: ids must lie below."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @cached_property
    def pad_id(self) -> int:
        """Id at padding: the tokenizer's own, else its EOS, else 0.

        The attention mask hides padding, so any id of the vocabulary gives the same result, and the embedding
        is never resized for one.
        """
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None and candidate < self.vocabulary_size:
                return int(candidate)
        return 0

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: those of the model's generation config and of the tokenizer; may be empty."""
        stated = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        ids = [] if stated is None else [stated] if isinstance(stated, int) else list(stated)
        ids.append(self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(int(i) for i in ids if i is not None and 0 <= i < self.vocabulary_size))

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Which tokenizer wrote a file: SHA-256 of tokenizer.json, or of the vocabulary where there is none."""
        file = self.folder.path / "tokenizer.json"
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(vocabulary.encode("ascii")).hexdigest()

    def check_fits(self, sequences: Sequence[Sequence[int]], *, new_tokens: int = 0) -> None:
        """Refuse ids and lengths that the model has no embedding for, before it fails inside.

        Args:
            sequences: token ids.
            new_tokens: how many more are to be generated.

        Raises:
            BadInputError: an id outside the vocabulary, or more tokens than the model has positions.
        """
        positions = getattr(self.model.config, "max_position_embeddings", None)
        for sequence in sequences:
            if positions is not None and len(sequence) + new_tokens > positions:
                more = f" and {new_tokens} new ones" if new_tokens else ""
                raise BadInputError(
                    f"a text of {len(sequence)} tokens{more} is too long for {self.folder.path}, which has "
                    f"{positions} positions: shorten the queries, or ask for fewer new tokens"
                )
            if sequence and not 0 <= min(sequence) <= max(sequence) < self.vocabulary_size:
                raise BadInputError(
                    f"the tokenizer of {self.folder.path} gives id {max(sequence)}, but the model embeds only "
                    f"{self.vocabulary_size}: they do not belong together"
                )


class LoadedModel(NamedTuple):
    """A model, and the tensors of its folder that it does not use."""

    model: PreTrainedModel
    unused_keys: tuple[str, ...]


def load_language_model(
    folder: ModelFolder, *, dtype: torch.dtype | None = None, device: str = "cpu", trust_remote_code: bool = False
) -> LanguageModel:
    """Load a model folder as transformers' users do, and check that nothing is missing or left over.

    Args:
        folder: an opened model folder.
        dtype: of the weights in memory; that of `running_dtype` unless given, which is the folder's own but on CPUs
            that cannot compute in it.
        device: "cpu", "cuda", "cuda:1", "mps", ...
        trust_remote_code: run the model code that the folder brings along, as the user asked.

    Returns:
        The model in eval mode, with its tokenizer.

    Raises:
        BadInputError: no such device, no tokenizer, code that is not trusted, tensors that are missing, left
            over or of another shape, or weights that are not finite.
    """
    _check_transformers(folder)
    tokenizer = tokenizer_of(folder.path, trust_remote_code=trust_remote_code)
    dtype = running_dtype(folder, device) if dtype is None else dtype
    loaded = load_model(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    return LanguageModel(loaded.model, tokenizer, folder.architecture, folder, loaded.model.device, loaded.unused_keys)


def load_model(
    folder: ModelFolder, *, dtype: torch.dtype | None = None, device: str = "cpu", trust_remote_code: bool = False
) -> LoadedModel:
    """The model alone, for passes that need no tokenizer; the folder's own dtype unless one is given.

    Arguments and errors as `load_language_model`.
    """
    if folder.fp8_blocks is not None:
        raise BadInputError(
            f"{folder.path} holds FP8 weights, which every machine runs otherwise: with its activations rounded to FP8 "
            "on some GPUs, as bfloat16 elsewhere; use the unquantised base"
        )
    _check_transformers(folder)
    place = _device(device)
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder.path,
                dtype="auto" if dtype is None else dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are listed; `_check_keys` refuses them
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
            model = model.to(place)
            if model.dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
                model.set_experts_implementation("eager")  # torch's grouped product has no float64 kernel
    except torch.OutOfMemoryError as error:
        raise BadInputError(f"{folder.path} does not fit into the memory of {place}: {_first_line(error)}") from error
    except _LOADING_ERRORS as error:
        raise _loading_error(folder.path, error) from error
    _check_keys(folder.path, info)
    model.eval().requires_grad_(False)
    check_finite(model)
    return LoadedModel(model, tuple(sorted(map(str, info.get("unexpected_keys", ())))))


def has_tokenizer(path: Path) -> bool:
    """Whether a model folder brings a tokenizer."""
    return any((path / name).is_file() for name in _TOKENIZER_FILES)


def tokenizer_of(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        BadInputError: the folder has none, or one that cannot be loaded.
    """
    if not has_tokenizer(path):
        raise BadInputError(f"{path} has no tokenizer: copy the base's tokenizer.json and tokenizer_config.json there")
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except _LOADING_ERRORS as error:
        raise _loading_error(path, error, part="the tokenizer of ") from error


def check_finite(model: torch.nn.Module) -> None:
    """Refuse weights that are not finite.

    Raises:
        BadInputError: a parameter holds NaN or infinity; the message names it.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise BadInputError(f"weight {name} holds NaN or infinity: the model's files are damaged")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside this context transformers writes no progress bars, logs or warnings of its own.

    Its errors still come; verbosity, bars and warning filters are what they were afterwards.
    """
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity(transformers_logging.CRITICAL)
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()


def _check_transformers(folder: ModelFolder) -> None:
    """Refuse an architecture whose module tree is another one in the installed release.

    Raises:
        BadInputError: the message names both releases.
    """
    architecture = folder.architecture
    least = architecture.min_transformers
    if least is None:
        return
    parts = least.split(".")
    if [int(part) for part in transformers.__version__.split(".")[: len(parts)]] < [int(part) for part in parts]:
        raise BadInputError(
            f"{folder.path} is a {architecture.model_type} model, which needs transformers {least} or newer, but "
            f"{transformers.__version__} is installed, whose modules are others: pip install 'transformers>={least}'"
        )


def _device(name: str) -> torch.device:
    try:
        place = torch.device(name)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise BadInputError(
            f"device {name!r} is not there: {_first_line(error)}; this machine runs on {_usable_devices()}"
        ) from error
    if place.type == "meta":
        raise BadInputError(f"device 'meta' holds no values: this machine runs on {_usable_devices()}")
    return place


def _usable_devices() -> str:
    usable = ["cpu"]
    usable += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        usable.append("mps")
    return ", ".join(usable)


def _check_keys(path: Path, info: dict[str, Any]) -> None:
    """Keys that an architecture tells transformers to ignore are in none of the lists."""
    for kind, meaning in (
        ("missing_keys", "lacks tensors that the model needs, which would be random"),
        ("mismatched_keys", "holds tensors of another shape than the config says"),
    ):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get(kind, ()))
        if keys:
            more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
            raise BadInputError(
                f"{path} {meaning}: {', '.join(keys[:_KEYS_SHOWN])}{more}; its config and files do not belong together"
            )
    if info.get("error_msgs"):
        raise BadInputError(f"{path} cannot be loaded: {'; '.join(map(str, info['error_msgs']))}")


def _loading_error(path: Path, error: Exception, part: str = "") -> BadInputError:
    text = str(error)
    if "trust_remote_code" in text:
        return BadInputError(
            f"{part}{path} needs model code of its own, which runs only with --trust-remote-code: {_first_line(error)}"
        )
    return BadInputError(f"transformers cannot load {part}{path}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
