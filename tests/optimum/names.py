"""What both environments have to know of the folders."""

from __future__ import annotations

from typing import Final

INSERTED: Final = "llama, inserted"
FOLDERS: Final = {
    "llama": "llama",
    "qwen2": "qwen2",
    "gpt2": "gpt2",
    "gemma3_text": "gemma3_text",
    INSERTED: "llama",
    "gemma2": "gemma2",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "qwen3": "qwen3",
}
"""Model types by the names of their folders."""

WRONG_EMPTY_CACHE: Final = {
    "gemma2": "optimum 0.1.0 takes the number of heads for the number of key-value heads",
    "phi3": "optimum 0.1.0 takes the number of heads for the number of key-value heads",
    "olmo2": "optimum 0.1.0 takes the number of heads for the number of key-value heads",
    "qwen3": "optimum 0.1.0 takes hidden_size / num_attention_heads for head_dim",
}
"""Models that optimum cannot run whoever wrote their graph: it makes the cache of the first step from the config."""

TOKENS: Final = 32
TEXT: Final = "How do I clean<extra> a kettle? 12"
