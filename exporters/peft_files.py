"""The two files of a LoRA adapter as PEFT names and reads them. Nothing of PEFT is imported.

`adapter_config.json` holds what makes the adapter and nothing that depends on PEFT's version; its readers fill in
their defaults. `lora_alpha` is the rank, so that the factor in front of B A is 1.

Stacked experts are one pair, A [experts · r, d_in] and B [d_out, r · experts]. Reshaped, they are [experts, r, d_in]
and [d_out, r, experts]: A counts expert by expert, B rank by rank (PEFT 0.19 and later; before, `target_parameters`
took the stacked parameter's two last axes the other way round, and loading ends with an error about shapes).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from alignez_bake.exporters.adapter_pairs import Pair

from alignez_bake.errors import BadInputError
from alignez_bake.hub.download import cached_repo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.exporters.adapter_pairs import AdaptedModule, AdapterLayout
    from numpy.typing import NDArray

    from alignez_bake.model_folder import ModelFolder

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
BASE_NAME_KEY: Final = "base_model_name_or_path"
BASE_REVISION_KEY: Final = "revision"
METADATA: Final = {"format": "pt"}

_PREFIX: Final = "base_model.model."
_A, _B, _BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"


def config_of(base: ModelFolder, layout: AdapterLayout, base_name: str) -> dict[str, Any]:
    """The content of adapter_config.json.

    Args:
        base: the base model.
        layout: of the adapter.
        base_name: folder from which its users load the base; one of the hub is named by repository and commit, since
            PEFT takes no `user/repo@revision`.
    """
    repo = cached_repo(base.path)
    named = {BASE_NAME_KEY: base_name} if repo is None else {BASE_NAME_KEY: repo.repo, BASE_REVISION_KEY: repo.revision}
    maps = [module for module in layout.modules if module.parameter is None]
    experts = [module for module in layout.modules if module.parameter is not None]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        **named,
        "inference_mode": True,
        "r": layout.rank,
        "lora_alpha": layout.rank,
        "lora_dropout": 0.0,
        "lora_bias": layout.constants,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": any(fold.slot.layout == "in_out" for module in maps for fold in module.folds),
        **_targets(base, maps),
    }
    if experts:
        config["target_parameters"] = sorted(f"{module.path}.{module.parameter}" for module in experts)
    return config


def encode_config(config: Mapping[str, Any]) -> str:
    """The text of adapter_config.json."""
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def tensor_names(module: AdaptedModule, *, constants: bool) -> tuple[str, ...]:
    """Names of the module's tensors in the file."""
    return tuple(f"{_PREFIX}{module.path}.{part}" for part in ((_A, _B, _BIAS) if constants else (_A, _B)))


def encode_pair(module: AdaptedModule, pair: Pair, *, constants: bool) -> dict[str, NDArray[np.float32]]:
    """The tensors of a pair by name, in float32.

    Raises:
        BadInputError: a value that float32 cannot hold.
    """
    experts, d_out, rank = pair.b_matrix.shape
    a_stored = pair.a_matrix.reshape(experts * rank, module.d_in)
    b_stored = pair.b_matrix.transpose(1, 2, 0).reshape(d_out, rank * experts)
    names = tensor_names(module, constants=constants)
    with np.errstate(over="ignore"):
        values = [part.astype(np.float32) for part in (a_stored, b_stored, pair.bias)[: len(names)]]
    if not all(np.isfinite(part).all() for part in values):
        raise BadInputError(f"the edits of {module.path} overflow float32 as an adapter: use a smaller strength")
    return dict(zip(names, values, strict=True))


def decode_pair(module: AdaptedModule, tensors: Mapping[str, NDArray[Any]], rank: int) -> Pair:
    """The pair in float64 from the tensors that `encode_pair` made."""
    experts = len(module.weights)
    constants = f"{_PREFIX}{module.path}.{_BIAS}" in tensors
    stored = [tensors[name].astype(np.float64) for name in tensor_names(module, constants=constants)]
    return Pair(
        stored[1].reshape(module.d_out, rank, experts).transpose(2, 0, 1),
        stored[0].reshape(experts, rank, module.d_in),
        stored[2] if constants else np.zeros(module.d_out),
    )


def stored_shapes(module: AdaptedModule, rank: int, *, constants: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's tensors by name."""
    columns = rank * len(module.weights)
    shapes: list[tuple[int, ...]] = [(columns, module.d_in), (module.d_out, columns), (module.d_out,)]
    names = tensor_names(module, constants=constants)
    return dict(zip(names, shapes[: len(names)], strict=True))


def _targets(base: ModelFolder, maps: Sequence[AdaptedModule]) -> dict[str, Any]:
    """Which modules PEFT shall wrap: no more and no fewer than those of the adapter.

    The shortest names that say so: last parts of paths (`o_proj`), paths below the decoder layer (`attn.c_proj`,
    since gpt2's MLP has a `c_proj` too), each with the layers if not all; else whole paths.
    """
    if not maps:
        return {"target_modules": []}
    architecture = base.architecture
    sites = [module.folds[0].slot.site for module in maps]
    below = {architecture.linear_site(site.kind, site.layer).module for site in sites}
    layers = sorted({site.layer for site in sites if site.layer is not None})
    pattern = architecture.layers.rpartition(".")[2]
    subset = None if len(layers) == base.num_layers or not layers else layers
    wanted = {module.weights[0].removesuffix(".weight") for module in maps}
    for names in ({path.rpartition(".")[2] for path in below}, below):
        if _matched(base, names, pattern, subset) == wanted:
            chosen: dict[str, Any] = {"target_modules": sorted(names)}
            return chosen if subset is None else chosen | {"layers_to_transform": subset, "layers_pattern": [pattern]}
    return {"target_modules": sorted(module.path for module in maps)}


def _matched(base: ModelFolder, names: set[str], pattern: str, layers: list[int] | None) -> set[str]:
    """Modules of the base's files whose path ends in one of the names, in one of the layers."""
    index = re.compile(rf"(?:^|.*?\.){re.escape(pattern)}\.(\d+)\.")
    found = set()
    for key in base.tensors:
        module = key.removesuffix(".weight")
        if module == key or not any(module == name or module.endswith(f".{name}") for name in names):
            continue
        layer = index.match(module)
        if layers is None or (layer is not None and int(layer[1]) in layers):
            found.add(module)
    return found
