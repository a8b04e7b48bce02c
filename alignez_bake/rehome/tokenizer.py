"""The tokenizer of a model that changes its type: it must load as the same one.

transformers 5 chooses the tokenizer's class by the model type too. Of the types that can become llama,

- mistral loads tokenizer.json as it is, whatever class tokenizer_config.json names (mistral-common's own files, where
  that package is installed, take precedence);
- qwen2 always loads as `Qwen2Tokenizer`, which builds its own pre-tokenizer and normaliser around the vocabulary;
- llama takes the class that is named.

So one of the classes that llama loads in the same way must stand in tokenizer_config.json, and is put there. An
incorrect regular expression that transformers corrects in mistral's tokenizers alone is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Refusal
from alignez_bake.safetensors_io.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignez_bake.rehome.places import Equivalent

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_TOKENIZER: Final = "tokenizer.json"
_OTHER_TOKENIZERS: Final = ("tekken.json", "tokenizer.model", "vocab.json", "spiece.model")
_BY_MODEL_TYPE: Final = ("auto_map", "fix_mistral_regex")


def tokenizer_changes(folder: Path, equivalent: Equivalent) -> Mapping[str, str] | Refusal:
    """Entries of tokenizer_config.json that must change for the tokenizer to stay the same under the other type.

    Args:
        folder: the base's folder.
        equivalent: what the base becomes.

    Returns:
        The entries, none where it stays as it is or the folder has no tokenizer; or why it cannot stay the same.
    """
    present = [name for name in (TOKENIZER_CONFIG, _TOKENIZER, *_OTHER_TOKENIZERS) if (folder / name).exists()]
    if not present:
        return {}
    missing = [name for name in (_TOKENIZER, TOKENIZER_CONFIG) if name not in present]
    if missing:
        return Refusal(
            f"it has {', '.join(present)} but no {missing[0]}, so the tokenizer would depend on the model type"
        )
    config = _read_object(folder / TOKENIZER_CONFIG)
    if isinstance(config, Refusal):
        return config
    if "tekken.json" in present:
        return Refusal("it has a tekken.json, which where mistral-common is installed is read for mistral types alone")
    by_type = [entry for entry in _BY_MODEL_TYPE if config.get(entry)]
    if by_type:
        return Refusal(f"its {TOKENIZER_CONFIG} has {by_type[0]}, whose meaning depends on the model type")
    is_same = config.get("tokenizer_class") in equivalent.same_tokenizer_classes
    return {} if is_same else {"tokenizer_class": equivalent.tokenizer_class}


def _read_object(file: Path) -> dict[str, Any] | Refusal:
    try:
        return parse_object(file.read_bytes(), "it")
    except (OSError, BadInputError) as error:
        return Refusal(f"its {file.name} cannot be read: {error}")
