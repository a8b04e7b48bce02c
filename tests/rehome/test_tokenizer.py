"""A model that changes its type keeps its tokenizer: the ids of AutoTokenizer are the judge."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignez_bake.lowering.decide import Refusal
from alignez_bake.model_folder import open_model_folder
from alignez_bake.rehome.changes import changed_tokenizer_entries, changes
from alignez_bake.rehome.places import places_of
from alignez_bake.rehome.rehome import rehome
from alignez_bake.rehome.tokenizer import tokenizer_changes
from alignez_bake.site import Site
from tests.rehome.rehoming import write_folder

TEXTS = (
    "Human: How do I clean a copper kettle?",
    " two  spaces and\na line",
    "café and cafe\u0301, 12345",
    "<s> not the first",
    "I'LL DON'T it's </s>then this",
)
CLASSES = ["PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer",
           "Qwen2TokenizerFast", "GPT2Tokenizer", None]  # fmt: skip


def ids(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text).input_ids for text in TEXTS], type(tokenizer).__name__


def edit_config(folder, **entries):
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """A BPE whose spaces are ▁, put there by a normaliser as in the first mistral models."""
    core = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    core.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("model_type", ["mistral", "qwen2"])
@pytest.mark.parametrize("declared", CLASSES)
@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_ids_stay_the_same_whatever_class_is_declared(model_type, declared, kind, tmp_path, save_tiny):
    tokenizer = sentencepiece_like() if kind == "sentencepiece" else None
    folder = save_tiny(model_type, tmp_path / "base", tokenizer=tokenizer)
    edit_config(folder, tokenizer_class=declared)
    base = open_model_folder(folder)
    rehomed = rehome(base, bias_sites=[Site("attn_write", 0)])
    written = write_folder(base, rehomed, tmp_path / "out")
    assert ids(written) == ids(folder)


@pytest.mark.parametrize(
    ("model_type", "declared", "kind"),
    [("qwen2", "PreTrainedTokenizerFast", "byte level"), ("mistral", "LlamaTokenizer", "sentencepiece")],
)
def test_without_the_change_ids_would_differ(model_type, declared, kind, tmp_path, save_tiny):
    tokenizer = sentencepiece_like() if kind == "sentencepiece" else None
    folder = save_tiny(model_type, tmp_path / "base", tokenizer=tokenizer)
    edit_config(folder, tokenizer_class=declared)
    base = open_model_folder(folder)
    rehomed = rehome(base, bias_sites=[Site("attn_write", 0)])
    assert changed_tokenizer_entries(base, rehomed)
    written = write_folder(base, rehomed, tmp_path / "out")
    edit_config(written, tokenizer_class=declared)
    assert ids(written)[0] != ids(folder)[0]


def test_the_change_is_stated(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("qwen2", tmp_path / "base"))
    rehomed = rehome(base, bias_sites=[Site("attn_write", 0)])
    assert changed_tokenizer_entries(base, rehomed) == {"tokenizer_class": "Qwen2Tokenizer"}
    assert any(line.startswith("tokenizer_config.json: tokenizer_class") for line in changes(base, rehomed))
    edit_config(base.path, tokenizer_class="Qwen2TokenizerFast")
    assert changed_tokenizer_entries(base, rehomed) == {}


def test_a_model_of_the_same_type_keeps_its_files(tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    assert changed_tokenizer_entries(base, rehome(base, bias_sites=[Site("attn_write", 0)])) == {}


def test_a_folder_without_tokenizer_has_nothing_to_keep(tmp_path):
    assert tokenizer_changes(tmp_path, places_of("mistral").equivalent) == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "tekken.json").write_text("{}"), "tekken.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "no tokenizer_config.json"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "is a JSON list: it must be an object"),
        (lambda folder: edit_config(folder, fix_mistral_regex=True), "has fix_mistral_regex"),
        (lambda folder: edit_config(folder, auto_map={"AutoTokenizer": ["a", None]}), "has auto_map"),
    ],
)
def test_what_depends_on_the_model_type_is_refused(change, reason, tmp_path, save_tiny):
    base = open_model_folder(save_tiny("mistral", tmp_path / "base"))
    change(base.path)
    refusal = rehome(base, bias_sites=[Site("attn_write", 0)])
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert "as a llama model it would not be the same" in refusal.reason
