"""optimum and torch on the same prompts. Imports optimum: for tests of its own environment alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from tests.onnx_export.graphs import prompts
from tests.optimum.names import TOKENS

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


def open_with_optimum(folder: Path, **settings) -> ORTModelForCausalLM:
    """A folder as optimum's users open it, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return ORTModelForCausalLM.from_pretrained(folder, session_options=options, **settings)


def tokens(model: ORTModelForCausalLM | PreTrainedModel, rows: int) -> list[list[int]]:
    """Greedy tokens behind the prompts of `tests.onnx_export.graphs`, by `generate`; no row ends early."""
    batch = prompts(rows)
    with torch.no_grad():
        found = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            eos_token_id=None,
            do_sample=False,
        )
    return found[:, batch.input_ids.shape[1] :].tolist()


def logits(model: ORTModelForCausalLM | PreTrainedModel) -> torch.Tensor:
    """Logits at the tokens of padded prompts, [tokens, vocabulary]."""
    batch = prompts(4)
    with torch.no_grad():
        return model(**batch._asdict()).logits[batch.attention_mask.bool()]
