"""What lies beside a graph: config, generation config and tokenizer, as transformers 4 and 5 both read them.

Whoever runs a graph with optimum has transformers 4.57; the base may have been saved by 5, which writes things that 4
reads wrongly or not at all:

- `rope_parameters` in config.json. 4 knows `rope_theta` and `rope_scaling`, and without them takes its defaults in
  silence. So it does with the number of qwen3_moe's experts, which has another name. 5 reads both.
- `tokenizer_class: TokenizersBackend`, a name that 4 refuses. `PreTrainedTokenizerFast` is the same class in 5, and
  what it was in 4.
- a list under `extra_special_tokens`, on which 4 fails: it calls that list `additional_special_tokens`, which 5 reads
  too.

A file in which nothing has to change is the base's, byte for byte.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.base_files import copy_base_files, with_dtype
from alignez_bake.rehome.tokenizer import TOKENIZER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignez_bake.exporters.protocol import SkippedFile
    from alignez_bake.model_folder import ModelFolder

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_OLD_NAMES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        "qwen3_moe": {"num_local_experts": "num_experts"},
    }
)
"""Where 4 has another name at the top of the config than 5 has there or in `rope_parameters`."""
_OF_THEIR_OWN: Final = ("rope_theta", "partial_rotary_factor")
"""Entries of `rope_parameters` that 4 has at the top of the config, and not in `rope_scaling`."""


def companion_files(
    base: ModelFolder,
    home: ModelFolder,
    out: Path,
    *,
    dtype: str | None = None,
    rewritten: Mapping[str, str] = _NOTHING,
) -> tuple[SkippedFile, ...]:
    """Write everything but the graph: the base's small files, and what readers of both releases need.

    Args:
        base: whose files are copied; its weights are not.
        home: whose config.json is written: the base, or an equivalent model.
        out: the folder that is being written, with an `alignez` subfolder.
        dtype: of the graph's weights, such as `float16`; that of the home's config where None.
        rewritten: texts of files that differ from the base's, by name, such as an equivalent's tokenizer config.

    Returns:
        Files of the base that were left out, with the reason.

    Raises:
        BadInputError: a tokenizer_config.json that is no JSON object; a symlink that leaves the base's folder.
    """
    tokenizer = _tokenizer_text(base.path / TOKENIZER_CONFIG, rewritten.get(TOKENIZER_CONFIG))
    skipped = copy_base_files(base.path, out, base.tensors.files)
    config = read_by_both(home.config if dtype is None else with_dtype(home.config, dtype))
    texts = dict(rewritten)
    if config != base.config:
        texts[CONFIG] = _as_text(config)
    if tokenizer is not None:
        texts[TOKENIZER_CONFIG] = tokenizer
    ids = {name: home.config[name] for name in _TOKEN_IDS if home.config.get(name) is not None}
    if ids and not (base.path / GENERATION_CONFIG).is_file():
        texts[GENERATION_CONFIG] = _as_text(ids)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return skipped


def read_by_both(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with what transformers 4 calls some of its entries; those that are there already stay.

    5 prefers `rope_scaling` to `rope_parameters`, and finds what is missing in it under the names of 4: both
    spellings have to be complete, and are.

    Parameters that differ between layers have a spelling in 4 only where full and sliding attention differ in their
    base frequency, which is how gemma3_text has them; others stay as they are.
    """
    names = _OLD_NAMES.get(str(config.get("model_type")), {})
    old = {old_name: config[name] for name, old_name in names.items() if name in config} | _old_rope(config, names)
    return {**config, **{name: value for name, value in old.items() if name not in config}}


def _old_rope(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or not parameters:
        return {}
    if isinstance(parameters.get(_FULL), dict) and isinstance(parameters.get(_SLIDING), dict):
        old = _old_parameters(parameters[_FULL], config, names)
        if "rope_theta" in parameters[_SLIDING]:
            old["rope_local_base_freq"] = parameters[_SLIDING]["rope_theta"]
        return old
    if any(isinstance(value, dict) for value in parameters.values()):
        return {}
    return _old_parameters(parameters, config, names)


def _old_parameters(
    parameters: Mapping[str, Any], config: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    old = {names.get(name, name): parameters[name] for name in _OF_THEIR_OWN if name in parameters}
    scaling = {name: value for name, value in parameters.items() if name not in _OF_THEIR_OWN}
    if config.get("model_type") == "phi3":
        # There 4 demands exactly `type` and the two lists of factors.
        scaling.pop("original_max_position_embeddings", None)
        scaling["type"] = scaling.pop("rope_type", scaling.get("type", "default"))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    # Written out where there is none, too: without the entry gpt_oss scales in 4.
    old["rope_scaling"] = None if kind == "default" else scaling
    return old


def _tokenizer_text(file: Path, rewritten: str | None) -> str | None:
    """The text of a tokenizer's config that has to change, or None."""
    if rewritten is None and not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8") if rewritten is None else rewritten)
    except (ValueError, RecursionError) as error:  # no text, no JSON
        raise BadInputError(f"{file} is no JSON file: {error}") from None
    if not isinstance(config, dict):
        raise BadInputError(f"{file} holds no JSON object")
    changed = dict(config)
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    return None if changed == config else _as_text(changed)


def _as_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
