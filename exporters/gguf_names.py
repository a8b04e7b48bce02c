"""What llama.cpp calls architectures and tensors, by the official `gguf` package's own tables.

What llama.cpp's converter does to weights beside renaming them (q and k of llama permuted, gpt_neox's qkv reordered,
one added to the norms of gemma2 and gemma3_text) does not touch the writers and gates that are edited here. gpt2's
Conv1D is transposed, so that its weights are [d_out, d_in] there too; phi3's gate stays the first half of one tensor.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType

    from alignez_bake.architectures.architecture import Architecture

LLAMA_CPP_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gemma2": "gemma2",
        "gemma3_text": "gemma3",
        "gpt2": "gpt2",
        "gpt_neox": "gptneox",
        "granite": "granite",
        "llama": "llama",
        "mistral": "llama",
        "mixtral": "llama",
        "olmo2": "olmo2",
        "phi3": "phi3",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
        "smollm3": "smollm3",
    }
)
"""llama.cpp's name of the architecture that runs a model type."""


def gguf_package() -> ModuleType:
    """The package `gguf`, imported when it is first needed.

    Raises:
        BadInputError: it is not installed.
    """
    try:
        import gguf  # noqa: PLC0415 - an extra, which most commands do without
    except ImportError:
        raise BadInputError(
            "GGUF files need the package gguf, which is not installed: pip install 'alignez-bake[gguf]'"
        ) from None
    module: ModuleType = gguf
    return module


def llama_cpp_name(model_type: str) -> str:
    """llama.cpp's name of the architecture that runs a model type.

    Raises:
        BadInputError: llama.cpp does not run it.
    """
    if model_type not in LLAMA_CPP_NAMES:
        raise BadInputError(
            f"GGUF files are not made for model_type {model_type!r}: they can be made for {', '.join(LLAMA_CPP_NAMES)}"
        )
    return LLAMA_CPP_NAMES[model_type]


def tensor_names(architecture: Architecture, config: Mapping[str, Any], modules: Iterable[str]) -> dict[str, str]:
    """The names that GGUF gives to the weights of modules, by the package's own table.

    Args:
        architecture: of the base.
        config: the base's config.json.
        modules: paths in the transformers module tree.

    Returns:
        For each module a name such as `blk.3.attn_output.weight`.

    Raises:
        BadInputError: the table has no such module, llama.cpp no such architecture, or gguf is missing.
    """
    gguf = gguf_package()
    label = llama_cpp_name(architecture.model_type)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[label], architecture.num_layers(config))
    found = {module: table.get_name(module) for module in modules}
    missing = [module for module, name in found.items() if name is None]
    if missing:
        raise BadInputError(f"gguf's table of tensor names for {label!r} lacks {', '.join(missing)}")
    return {module: f"{name}.weight" for module, name in found.items()}
