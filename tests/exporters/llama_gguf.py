"""Tiny models as whole GGUF files, and llama.cpp running them: the other end of what `exporters.gguf` writes.

This is no converter: float32, no tokenizer, and only what the tiny configs of the tests use. What llama.cpp stores
otherwise than transformers, and why it stays the same model:

q and k of llama, mistral and mixtral.
    transformers rotates row i of a head together with row i + h/2 (half-split), llama.cpp's graph for these
    architectures rows 2i and 2i + 1 (interleaved), both by the angle i. So row 2i of the GGUF head is row i, and row
    2i + 1 is row i + h/2: as [heads, 2, h/2, d] the two inner axes swap. q and k are permuted alike, and their
    product is a sum over rows, so every attention score stays. The others rotate half-split there too.
query_key_value of gpt_neox.
    Its rows lie as [heads, 3, h], llama.cpp cuts them as [3, heads, h].
Norms of gemma2.
    The module multiplies with 1 + weight, llama.cpp with what is stored.
Conv1D of gpt2.
    It holds [d_in, d_out], llama.cpp [d_out, d_in].
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from alignez_bake.exporters.gguf_files import read_control_vector
from alignez_bake.exporters.gguf_names import llama_cpp_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

INTERLEAVED = ("llama", "mistral", "mixtral")
"""Model types whose q and k llama.cpp rotates in neighbouring pairs."""


def write_model(model: PreTrainedModel, path: Path) -> Path:
    """Write a model as float32 GGUF; returns `path`."""
    config = model.config
    arch = llama_cpp_name(config.model_type)
    kinds = {label: kind for kind, label in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[arch], config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model("none")
    _write_settings(writer, config)
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        for part, stored in _as_stored(config, name, values):
            stem, _, suffix = part.rpartition(".")
            found = names.get_name(stem) if suffix in ("weight", "bias") else None
            assert found is not None, part
            writer.add_tensor(f"{found}.{suffix}", np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_settings(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.n_inner if config.model_type == "gpt2" else config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    for key in ("layer_norm_eps", "layer_norm_epsilon"):
        if hasattr(config, key):
            writer.add_layer_norm_eps(getattr(config, key))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = getattr(config, "rope_parameters", None)
    if rope is not None:
        assert rope["rope_type"] == "default"
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
        assert config.query_pre_attn_scalar == head_dim
    if config.model_type == "mixtral":
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def _as_stored(
    config: PretrainedConfig, name: str, values: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """A parameter under the names and in the layouts that GGUF has for it: one, or the parts of a fused one."""
    model_type = config.model_type
    if name.endswith(("experts.gate_up_proj", "experts.down_proj")):  # [E, 2 I, H] and [E, H, I], without ".weight"
        stem = name.rpartition(".")[0]
        if name.endswith("down_proj"):
            yield f"{stem}.down_proj.weight", values
        else:
            gate, up = np.split(values, 2, axis=1)
            yield f"{stem}.gate_proj.weight", gate
            yield f"{stem}.up_proj.weight", up
        return
    if model_type in INTERLEAVED and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    elif model_type == "gpt_neox" and ".query_key_value." in name:
        heads = config.num_attention_heads
        values = values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    elif model_type == "gemma2" and name.endswith("norm.weight"):
        values = values + 1.0
    elif model_type == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        values = values.T
    yield name, values


def llama_cpp_logits(
    model: Path, ids: Sequence[int], *, adapter: Path | None = None, control_vector: Path | None = None
) -> NDArray[np.float32]:
    """Logits [T, V] of a token sequence, by llama.cpp with float32 caches on one thread.

    Args:
        model: a whole GGUF model.
        ids: the tokens, evaluated as one batch.
        adapter: a LoRA adapter, applied with scale 1.
        control_vector: applied as llama.cpp's own programs do: as one buffer of rows from layer 1 on.
    """
    import llama_cpp

    with ExitStack() as stack:
        llama = llama_cpp.Llama(
            str(model),
            n_ctx=256,
            n_batch=256,
            n_ubatch=256,
            n_threads=1,
            n_threads_batch=1,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            lora_path=None if adapter is None else str(adapter),
            verbose=False,
        )
        stack.callback(llama.close)
        if control_vector is not None:
            _set_control_vector(llama, control_vector)
        llama.eval(list(ids))
        return np.array(llama.scores[: len(ids)], dtype=np.float32)


def _set_control_vector(llama: Any, path: Path) -> None:
    import llama_cpp

    shifts = read_control_vector(path).shifts
    width = next(iter(shifts.values())).size
    rows = np.zeros((max(shifts), width), dtype=np.float32)
    for layer, shift in shifts.items():
        rows[layer - 1] = shift
    data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    last = max(shifts)
    assert llama_cpp.llama_set_adapter_cvec(llama.ctx, data, rows.size, width, 1, last) == 0
