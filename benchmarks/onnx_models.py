"""Random llamas to measure on, with edits that fold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.onnx_export.companions import read_by_both
from alignez_bake.site import Site

if TYPE_CHECKING:
    from alignez_bake.model_folder import ModelFolder

RANK: Final = 4
SIZES: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 768,
    },
    "51M": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 16000,
    },
    "125M": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "500M": {
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
}
_POSITIONS: Final = 2048
_TOKENIZER: Final = Path(__file__).parents[1] / "examples" / "demo" / "base"
_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")


def write_base(size: str, folder: Path, *, dtype: torch.dtype) -> None:
    """A random llama of one of SIZES, with a tokenizer, which onnxruntime-genai's builder asks for.

    Its config is readable by transformers 4 too, where optimum runs.
    """
    config = LlamaConfig(
        max_position_embeddings=_POSITIONS, bos_token_id=0, eos_token_id=1, pad_token_id=1, **SIZES[size]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(read_by_both(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
    for name in _TOKENIZER_FILES:
        shutil.copyfile(_TOKENIZER / name, folder / name)


def folded_plan(base: ModelFolder) -> EditPlan:
    """Random edits of rank 4 that read the output of the MLP writer of every layer: all of them fold."""
    rng = np.random.default_rng(0)
    width = int(base.config["hidden_size"])
    edits = []
    for layer in range(base.num_layers):
        left, right = (rng.normal(scale=width**-0.5, size=(width, RANK)).astype(np.float32) for _ in range(2))
        edits.append(Edit(Site("mlp_write", layer), 0.5 * left, right))
    return EditPlan(tuple(edits), base=base.fingerprint)


def weight_bytes(model: ModelFolder) -> int:
    """Of all tensors as stored."""
    return sum(model.tensors.entry(name).nbytes for name in model.tensors.names())
