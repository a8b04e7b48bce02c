"""Folders that transformers 5 writes and optimum, with transformers 4, then reads.

    python -m tests.optimum.folders out/optimum

For each of FOLDERS a base as transformers 5 saves it, `checkpoint` and `graph`, into which the same edits
are baked, and `expected.json`: what the edited model says in transformers 5. Inserted edits have no checkpoint, since
its code is made for transformers 5.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.commands.bake import bake
from alignez_bake.lowering.hooks import edited_by_hooks
from tests.baking import plan_for
from tests.onnx_export.graphs import Torch, greedy, prompts
from tests.optimum.names import FOLDERS, INSERTED, TEXT, TOKENS
from tests.running import load, relative
from tests.tiny_models import COMBINATIONS, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Not what transformers 4 takes where it finds no entry of its own.
_DEFAULT = {"rope_type": "default", "rope_theta": 5000.0}
_ROPE: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gemma3_text": {"full_attention": _DEFAULT, "sliding_attention": {**_DEFAULT, "rope_theta": 300.0}},
}


def write(name: str, folder: Path) -> None:
    """Write one of FOLDERS."""
    model_type = FOLDERS[name]
    base = folder / "base"
    rope = _ROPE.get(model_type, _DEFAULT)
    bias = (model_type, False) not in COMBINATIONS
    model = tiny_model(model_type, bias=bias, overrides={"rope_parameters": rope} if rope else {})
    model.save_pretrained(base)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(base)
    plan = plan_for(base)
    if name == INSERTED:
        plan = replace(plan, edits=tuple(replace(edit, gate="tanh") for edit in plan.edits))
    result = bake(base, plan, folder / "graph", artefact="onnx", verify="tensors")
    assert result.verdict == "passed", result.reasons
    if name == INSERTED:
        with edited_by_hooks(model, architecture_for(model.config.to_dict()), plan):
            tokens, edited = _tokens(model), _logits(model)
    else:
        bake(base, plan, folder / "checkpoint")
        baked = load(folder / "checkpoint", torch.float32)
        tokens, edited = _tokens(baked), _logits(baked)
    expected = {
        "ids": tokenizer(TEXT)["input_ids"],
        "tokens": tokens,
        "moved": relative(_logits(model), edited),  # a tiny model may say one token for ever, edited or not
    }
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _tokens(model: PreTrainedModel) -> dict[str, list[list[int]]]:
    """Greedy tokens of one prompt, and of several that are padded."""
    return {str(rows): greedy(Torch(model), prompts(rows), TOKENS)[0].tolist() for rows in (1, 4)}


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(**prompts(1)._asdict()).logits


def main() -> None:
    """Write them all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    # Two at a time, each in a process of its own: an export keeps one core busy for seconds.
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for written in [pool.submit(write, name, out / name) for name in FOLDERS]:
            written.result()


if __name__ == "__main__":
    main()
