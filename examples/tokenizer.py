"""A small byte-level BPE tokenizer, trained on the corpus and saved as an ordinary fast tokenizer."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from examples.corpus import Document
from examples.prompts import CHAT_TEMPLATE

VOCABULARY = 768
CONTEXT = 512
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(documents: Iterable[Document], prompt_template: str | None) -> PreTrainedTokenizerFast:
    """Train on whole documents; merges never cross the seams between parts, as these lie at white space.

    It gets a chat template only where queries are asked in AlignEZ's form: one that renders another form than the
    model was trained on would get in the way of that form.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(("".join(document) for document in documents), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE if prompt_template is None else None,
    )


def encode_parts(tokenizer: PreTrainedTokenizerFast, parts: Sequence[str]) -> list[int]:
    """Tokenise the parts one by one and join them as ids behind one BOS, as the tool does."""
    ids = [tokenizer.bos_token_id]
    for part in parts:
        ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return ids


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save it under the class name that transformers 4 and 5 both know; 5 alone writes a name that 4 refuses."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
