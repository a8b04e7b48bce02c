"""What the forward level records of a model: residual stream, logits, sites, greedy tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from transformers import GenerationConfig

from alignez_bake.language_model.batching import PaddedBatch, left_padded
from alignez_bake.language_model.loading import quiet_transformers
from alignez_bake.language_model.sampling import no_inherited_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.progress import Advance

# Logits of every position would be gigabytes at a vocabulary of 128k: the last positions of each prompt tell as much.
LOGIT_POSITIONS: Final = 16


class Outputs(NamedTuple):
    """At real tokens only, padding left out, on the CPU.

    Attributes:
        residual: what the last layer leaves, before the final norm, at every token, [tokens, d].
        logits: at the last 16 tokens of each prompt, [prompts · 16, vocabulary].
    """

    residual: torch.Tensor
    logits: torch.Tensor


class SiteRecord(NamedTuple):
    """Input and output of the module at one site in one pass, in the model's dtype and with their batch dimensions."""

    input: torch.Tensor
    output: torch.Tensor


def batches(prompts: Sequence[Sequence[int]], batch_size: int, device: torch.device) -> list[PaddedBatch]:
    """Left-padded batches in the order of the prompts."""
    return [left_padded(prompts[start : start + batch_size], 0, device) for start in range(0, len(prompts), batch_size)]


@torch.no_grad()
def record_outputs(
    model: PreTrainedModel,
    architecture: Architecture,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    advance: Advance,
    *,
    logit_positions: int = LOGIT_POSITIONS,
) -> Outputs:
    """Residual stream and the logits at the last positions of every prompt, in left-padded batches."""
    residuals: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    leaving: list[torch.Tensor] = []

    def keep(_module: object, _args: object, output: Any) -> None:  # noqa: ANN401 - tensor or tuple
        leaving[:] = [output[0] if isinstance(output, tuple) else output]

    # Not the final norm's input: opt-350m has no final norm.
    last_layer = len(model.get_submodule(architecture.layers)) - 1
    handle = model.get_submodule(architecture.layer_path(last_layer)).register_forward_hook(keep)
    try:
        for batch in batches(prompts, batch_size, model.device):
            result = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=logit_positions,
            )
            real = batch.attention_mask.bool()
            residuals.append(leaving[0][real].cpu())
            # opt of transformers 4.57 gives every position, whatever it is asked for.
            logits.append(result.logits[:, -logit_positions:][real[:, -logit_positions:]].cpu())
            advance(real.shape[0])
    finally:
        handle.remove()
    return Outputs(torch.cat(residuals), torch.cat(logits))


@torch.no_grad()
def record_sites(
    model: PreTrainedModel, module_paths: Sequence[str], prompts: Sequence[Sequence[int]]
) -> dict[str, list[SiteRecord]]:
    """Input and output of modules, one prompt at a time; output as the hooks around leave it."""
    seen: dict[str, list[SiteRecord]] = {path: [] for path in module_paths}

    def keeper(path: str) -> Any:  # noqa: ANN401 - a forward hook
        def keep(_module: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen[path].append(SiteRecord(args[0], output))

        return keep

    handles = [model.get_submodule(path).register_forward_hook(keeper(path)) for path in module_paths]
    try:
        for batch in batches(prompts, 1, model.device):
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def greedy_tokens(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], batch_size: int, new_tokens: int, advance: Advance
) -> list[list[int]]:
    """Exactly `new_tokens` greedy tokens after each prompt, past any EOS, with a KV cache and left padding."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0, use_cache=True
    )
    results: list[list[int]] = []
    for batch in batches(prompts, batch_size, model.device):
        with quiet_transformers(), no_inherited_settings(model):
            ids = model.generate(
                inputs=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                generation_config=config,
            )
        results.extend(ids[:, batch.input_ids.shape[1] :].tolist())
        advance(len(batch.input_ids))
    return results
