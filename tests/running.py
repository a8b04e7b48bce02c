"""Running a tiny model and comparing what it gives."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignez_bake.certificate import prompts
from tests.tiny_models import VOCABULARY, runs_in_its_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def short_certificates() -> Iterator[None]:
    """Certificates with few greedy tokens behind each prompt: where a result has only to be certified.

    What a certificate finds is proved with all of them, in `tests/certificate` and where results are compared.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "GREEDY_TOKENS", 8)
        yield


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    return float((found.detach() - expected.detach()).norm() / expected.detach().norm())


def first(output):
    """What a module gives, or the first of it."""
    return output[0] if isinstance(output, tuple) else output


def load(path, dtype):
    """Plain `from_pretrained`, with no key missing or left over."""
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return runs_in_its_dtype(model).eval()


def run(model, architecture, module_paths):
    """Logits, what enters the final norm, and input and output of each module, of one forward pass."""
    ids = torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(7))
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    residual = []
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _m, args, output, path=path: seen.__setitem__(path, (args[0], first(output)))
        )
        for path in module_paths
    ]
    handles.append(
        model.get_submodule(architecture.final_norm).register_forward_pre_hook(
            lambda _m, args: residual.append(args[0])
        )
    )
    with torch.no_grad():
        logits = model(ids).logits
    for handle in handles:
        handle.remove()
    return logits, residual[0], seen
