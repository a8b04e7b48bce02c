"""Synthetic checkpoints that lie on disk as real ones do: names, shapes, shards, index and config."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.safetensors_io.new_file import new_file
from alignez_bake.safetensors_io.writer import TensorSlot, encode_header
from benchmarks.bake_values import Values

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BYTES: Final = 2
"""Of a value: all is bf16."""
SHARD_BYTES: Final = 5_000_000_000
"""What `save_pretrained` has long taken as the most of a shard, and what most of the hub's checkpoints have."""
_METADATA: Final = {"format": "pt"}

_COMMON: Final[dict[str, Any]] = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}
_LLAMA: Final[dict[str, Any]] = {
    **_COMMON,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
_QWEN2: Final[dict[str, Any]] = {
    **_COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}


CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        **_QWEN2,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 2048,
    },
    "0.5": {  # as Qwen2-0.5B
        **_QWEN2,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 151936,
    },
    "1.5": {  # as Qwen2-1.5B
        **_QWEN2,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "3": {  # as Llama-3.2-3B
        **_LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8": {  # as Llama-3.1-8B
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
"""By size in billions of parameters."""


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint, in the order of the model's own state dict.

    The hub's checkpoints had their shards filled in this order; transformers 5 now fills them by name.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        for name, width in (("q", query), ("k", key), ("v", key)):
            shapes[f"{place}self_attn.{name}_proj.weight"] = (width, hidden)
            if config["model_type"] == "qwen2":
                shapes[f"{place}self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{place}self_attn.o_proj.weight"] = (hidden, query)
        shapes[f"{place}mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{place}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{place}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{place}input_layernorm.weight"] = (hidden,)
        shapes[f"{place}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def weight_bytes(config: Mapping[str, Any]) -> int:
    """Of all tensors as stored."""
    return sum(_nbytes(shape) for shape in tensor_shapes(config).values())


def shards_of(shapes: Mapping[str, tuple[int, ...]], most_bytes: int) -> list[list[str]]:
    """Names by shard: filled in order, a new one begun where the next tensor would not fit.

    Args:
        shapes: in the order of the state dict.
        most_bytes: of a shard; a larger tensor has one to itself.
    """
    shards: list[list[str]] = [[]]
    room = most_bytes
    for name, shape in shapes.items():
        if shards[-1] and _nbytes(shape) > room:
            shards.append([])
            room = most_bytes
        shards[-1].append(name)
        room -= _nbytes(shape)
    return shards


def write_checkpoint(config: Mapping[str, Any], folder: Path, most_bytes: int) -> None:
    """Write shards of random values, their index, and config.json last: a folder that has one is whole.

    No more than one tensor is in memory at once.

    Args:
        config: one of CONFIGS.
        folder: that is made.
        most_bytes: of a shard.
    """
    folder.mkdir(parents=True)
    shapes = tensor_shapes(config)
    shards = shards_of(shapes, most_bytes)
    values = Values(float(config["initializer_range"]))
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # The library sorts tensors of one dtype by name.
        slots = [TensorSlot(name, "BF16", shapes[name]) for name in sorted(names)]
        with new_file(folder / file) as weights:
            weights.write(encode_header(slots, _METADATA))
            for slot in slots:
                weights.write(values.of(slot.name, slot.shape).reshape(-1).view(np.uint8).data)
        file_of |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(_nbytes(shape) for shape in shapes.values())
        index = {
            "metadata": {"total_parameters": total // BYTES, "total_size": total},
            "weight_map": dict(sorted(file_of.items())),
        }
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "generation_config.json", {name: config[name] for name in ("bos_token_id", "eos_token_id")})
    _write_json(folder / "config.json", config)


def _nbytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * BYTES


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
