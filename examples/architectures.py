"""The architectures that the script can train, all of about two million parameters."""

from transformers import GPTNeoXConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from examples.tokenizer import CONTEXT, VOCABULARY

_HIDDEN = 160
_LAYERS = 6
_HEADS = 10
_KEY_VALUE_HEADS = 5
_HEAD_DIM = 16
_GATED_MLP = 432
_PLAIN_MLP = 640


def _llama() -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=_HIDDEN,
        intermediate_size=_GATED_MLP,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KEY_VALUE_HEADS,
        head_dim=_HEAD_DIM,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )


def _qwen3() -> PretrainedConfig:
    return Qwen3Config(
        hidden_size=_HIDDEN,
        intermediate_size=_GATED_MLP,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KEY_VALUE_HEADS,
        head_dim=_HEAD_DIM,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )


def _gpt_neox() -> PretrainedConfig:
    return GPTNeoXConfig(
        hidden_size=_HIDDEN,
        intermediate_size=_PLAIN_MLP,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tie_word_embeddings=False,
    )


ARCHITECTURES = {"llama": _llama, "qwen3": _qwen3, "gpt_neox": _gpt_neox}
