"""Tiny random models and tokenizers for tests of many architectures.

Every parameter has random values of its own, norms and biases included, so that no edit, bias or norm is trivially
zero or one and a test that mixes two of them up fails. Nothing here touches the global random state.

Biases at the writers exist where the architecture has a switch for them:

    model_type   bias=False   bias=True                         biases it always has
    llama        yes          attention_bias, mlp_bias          none
    qwen2        yes          no such switch                    q, k, v
    qwen3        yes          attention_bias                    none
    mistral      yes          no such switch                    none
    gpt2         no           always                            all (Conv1D)
    gpt_neox     yes          attention_bias                    both MLP maps
    gemma2       yes          attention_bias                    none
    gemma3_text  yes          attention_bias                    none
    olmo2        yes          attention_bias                    none
    phi3         yes          no such switch                    none
    smollm3      yes          attention_bias, mlp_bias          none
    granite      yes          attention_bias, mlp_bias          none
    opt          yes          enable_bias                       none
    mixtral      yes          no such switch                    none
    qwen3_moe    yes          attention_bias                    none
    deepseek_v3  yes          attention_bias                    none
    gpt_oss      yes          attention_bias                    all experts, the router

`hidden` differs from heads x head_dim in qwen3, gemma2, gemma3_text, qwen3_moe, deepseek_v3 and gpt_oss, so that their
attention writers are not square. All layers of qwen3_moe and deepseek_v3 have experts, unless entries of the config
make some of them dense.
"""

from __future__ import annotations

import json
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedModel

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
VOCABULARY = 320
CONTEXT = 256

_BIAS_SWITCHES: dict[str, dict[str, bool] | None] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": None,
    "qwen3": {"attention_bias": True},
    "mistral": None,
    "gpt2": {},
    "gpt_neox": {"attention_bias": True},
    "gemma2": {"attention_bias": True},
    "gemma3_text": {"attention_bias": True},
    "olmo2": {"attention_bias": True},
    "phi3": None,
    "smollm3": {"attention_bias": True, "mlp_bias": True},
    "granite": {"attention_bias": True, "mlp_bias": True},
    "opt": {"enable_bias": True},
    "mixtral": None,
    "qwen3_moe": {"attention_bias": True},
    "deepseek_v3": {"attention_bias": True},
    "gpt_oss": {"attention_bias": True},
}
"""What turns the writers' biases on; None: they cannot have any; empty: they always have them."""

MODEL_TYPES: tuple[str, ...] = tuple(_BIAS_SWITCHES)

COMBINATIONS: tuple[tuple[str, bool], ...] = tuple(
    (model_type, bias)
    for model_type, switches in _BIAS_SWITCHES.items()
    for bias in (False, True)
    if not (bias and switches is None) and not (not bias and switches == {})
)
"""Every (model_type, bias) that exists."""

_ROPE_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
}
_WIDE_SIZES: dict[str, Any] = {
    **_ROPE_SIZES,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": CONTEXT // 4,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_SIZES: dict[str, dict[str, Any]] = {
    "llama": {**_ROPE_SIZES, "head_dim": 16},
    "qwen2": _ROPE_SIZES,
    "qwen3": _WIDE_SIZES,
    "mistral": {**_ROPE_SIZES, "head_dim": 16, "sliding_window": None},
    "gpt2": {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
    },
    "gemma2": {**_WIDE_SIZES, "query_pre_attn_scalar": 16},
    # By default one layer in six sees the whole context: of two, none.
    "gemma3_text": {
        **_WIDE_SIZES,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmo2": _ROPE_SIZES,
    "phi3": {**_ROPE_SIZES, "original_max_position_embeddings": CONTEXT},
    "mixtral": {
        **_ROPE_SIZES,
        "head_dim": 16,
        "sliding_window": None,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    # By default the weights of the chosen experts do not sum to one.
    "qwen3_moe": {**_WIDE_SIZES, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
    # Keys and values of different widths, experts in groups, and two shared ones, which are one map of twice the width.
    "deepseek_v3": {
        **_ROPE_SIZES,
        "hidden_size": 48,
        "num_key_value_heads": 2,
        "q_lora_rank": 20,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "first_k_dense_replace": 0,
        "moe_intermediate_size": 24,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    # A window that acts on short prompts.
    "gpt_oss": {
        **_WIDE_SIZES,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "rope_parameters": {**_YARN, "truncate": False},
    },
    # By default one layer in four has no rotary positions: of two, none.
    "smollm3": {**_ROPE_SIZES, "no_rope_layers": [1, 0]},
    # By default all multipliers are 1.
    "granite": {
        **_ROPE_SIZES,
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.625,
        "logits_scaling": 2.0,
    },
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
    },
}

_CORPUS = (
    "Human: How do I clean a copper kettle?",
    "Assistant: Rub it with lemon and mind the spout.",
    "You are a helpful assistant. Your answer should be helpful.",
    "Pretend you are a useless assistant. Your answer should be useless.",
    "Your answer to this query should: Your response to this query should: ",
)


def tiny_model(
    model_type: str,
    *,
    bias: bool,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    overrides: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A random causal model in eval mode.

    Args:
        model_type: one of MODEL_TYPES.
        bias: whether the writers have biases; with `model_type` one of COMBINATIONS.
        seed: another seed gives other values to every parameter.
        dtype: of every parameter; the values are drawn in float32 and rounded.
        overrides: entries of the config that replace those of this file, such as `tie_word_embeddings`.
    """
    if (model_type, bias) not in COMBINATIONS:
        raise ValueError(f"{model_type} does not exist with bias={bias}")
    switches = _BIAS_SWITCHES[model_type] or {}
    settings = {
        "vocab_size": VOCABULARY,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        **_SIZES[model_type],
        **dict.fromkeys(switches, bias),
        **(overrides or {}),
    }
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # deepseek_v3 keeps what corrects its choice of experts as a buffer that is saved.
    corrections = [entry for entry in model.named_buffers() if entry[0].endswith("correction_bias")]
    for index, (name, parameter) in enumerate([*model.named_parameters(), *corrections]):
        generator = torch.Generator().manual_seed(1_000_003 * seed + index)
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(_values(model_type, name, noise))
        parameter.requires_grad_(False)
    return runs_in_its_dtype(model.to(dtype)).eval()


def runs_in_its_dtype(model: PreTrainedModel) -> PreTrainedModel:
    """The model, with experts computed one by one where torch's grouped product has no kernel: in float64."""
    if has_experts(model) and model.dtype == torch.float64:
        model.set_experts_implementation("eager")
    return model


def has_experts(model: PreTrainedModel) -> bool:
    """Whether some layers are mixtures of experts."""
    return any(name.endswith(".experts") for name, _ in model.named_modules())


def _values(model_type: str, name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("correction_bias"):  # small beside scores from 0 to 1, so that no expert is never chosen
        return 0.05 * noise
    if name.endswith("bias"):
        return 0.3 * noise
    if noise.dim() == 1:  # norms; gemma2 and gemma3_text add the one themselves
        return 0.3 * noise + (0.0 if model_type in ("gemma2", "gemma3_text") else 1.0)
    if any(part in name for part in ("embed_tokens", "embed_in", "embed_positions", "wte", "wpe")):
        return 0.5 * noise
    transposed = (model_type == "gpt2" and "lm_head" not in name) or (model_type == "gpt_oss" and ".experts." in name)
    fan_in = noise.shape[-2] if transposed else noise.shape[-1]
    return noise * (2.0 if "lm_head" in name or "embed_out" in name else 1.0) / math.sqrt(fan_in)


@cache
def _tiny_tokenizer_json(bos: bool) -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_CORPUS, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
        )
    return core.to_str()


def tiny_tokenizer(*, bos: bool = True, pad: bool = True, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCABULARY tokens; every text can be encoded and comes back the same.

    Args:
        bos: whether it has a BOS token and puts it first (llama does, gpt2 and qwen do not).
        pad: whether it has a padding token.
        chat_template: a Jinja template, or none.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tiny_tokenizer_json(bos)),
        bos_token=BOS if bos else None,
        eos_token=EOS,
        pad_token=PAD if pad else None,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
    )


def save_tiny_tokenizer(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Save it under the class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(path)
    file = path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def with_bias(model_type: str, bias: bool | None) -> bool:
    """Whether the writers have biases: as asked for, else only where the architecture cannot be without."""
    return (model_type, False) not in COMBINATIONS if bias is None else bias


def save_tiny(
    model_type: str,
    path: Path,
    *,
    bias: bool | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    overrides: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Save a tiny model and its tokenizer as an ordinary model folder.

    Args:
        model_type, seed, dtype, overrides: as `tiny_model`.
        path: the folder to make.
        bias: as `tiny_model`; unless given, without biases where the architecture can be without.
        tokenizer: another than `tiny_tokenizer()`.
        max_shard_size: a small one, such as "20KB", gives several files and an index.

    Returns:
        `path`.
    """
    model = tiny_model(model_type, bias=with_bias(model_type, bias), seed=seed, dtype=dtype, overrides=overrides)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    save_tiny_tokenizer(tiny_tokenizer() if tokenizer is None else tokenizer, path)
    return path
