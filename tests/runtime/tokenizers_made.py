"""Small tokenizers of the kinds that causal models have, as tokenizer.json says them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.tiny_models import tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = "Rub it with lemon, and mind the naïve spout: 👩‍👩‍👧 日本語 fine  two spaces\n\nend"
_LETTERS = sorted(set("▁" + "Rub it with lemon, and mind the naive spout: fine two spaces end.".replace(" ", "")))
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(*, bos: bool = True) -> Tokenizer:
    """gpt2, llama 3, qwen: every byte is a letter; a character of several bytes lies in several tokens."""
    return Tokenizer.from_str(tiny_tokenizer(bos=bos).backend_tokenizer.to_str())


def byte_fallback() -> Tokenizer:
    """llama 2, mistral: words begin with "▁", the first one's space is taken away, unknown letters are bytes."""
    vocabulary = ["<unk>", "<s>", "</s>", *_BYTES, *_LETTERS]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "a"), ("n", "d"), ("▁a", "nd"), ("l", "e"), ("▁", "le")]
    vocabulary += [first + second for first, second in merges]
    core = Tokenizer(
        models.BPE(
            {token: id_ for id_, token in enumerate(vocabulary)}, merges, unk_token="<unk>", fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


def unigram() -> Tokenizer:
    """SentencePiece's other model, as t5 and gemma's relatives have it, with Metaspace on both sides."""
    words = ["▁the", "▁and", "▁lemon", "▁mind", "▁"]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(token, -12.0) for token in _BYTES]
    pieces += [(token, -3.0) for token in words]
    pieces += [(token, -6.0) for token in _LETTERS if token not in words]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


def suffixed() -> Tokenizer:
    """Words that end in "</w>", as openai-gpt has them: a token's text depends on whether another follows."""
    core = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], end_of_word_suffix="</w>", show_progress=False
    )
    core.train_from_iterator([TEXT, "the lemon and the spout"], trainer)
    return core


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level, "byte_fallback": byte_fallback, "unigram": unigram, "suffixed": suffixed,
}  # fmt: skip


def save_tokenizer(core: Tokenizer, folder: Path, config: dict[str, object] | None = None) -> Path:
    """tokenizer.json, and tokenizer_config.json where `config` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
