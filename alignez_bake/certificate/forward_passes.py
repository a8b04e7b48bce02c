"""What the forward level records of a model: residual stream, logits, sites, greedy tokens, the routers' choices."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessorList

from alignez_bake.certificate.routing import Generated, RouterCalls, Routing, routing_of, watched_routers
from alignez_bake.language_model.batching import PaddedBatch, left_padded
from alignez_bake.language_model.loading import quiet_transformers
from alignez_bake.language_model.sampling import no_inherited_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        routing: what the routers gave; None without experts.
    """

    residual: torch.Tensor
    logits: torch.Tensor
    routing: Routing | None = None

    @property
    def router_logits(self) -> torch.Tensor:
        """Of every expert, by every router at every token; only of a model that has experts."""
        assert self.routing is not None
        return torch.cat([of_prompt.flatten() for of_prompt in self.routing.logits])


class SiteRecord(NamedTuple):
    """Input and output of the module at one site in one pass, in the model's dtype and with their batch dimensions."""

    input: torch.Tensor
    output: torch.Tensor


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖, Frobenius, in fp64; the largest float stands for an infinite or undefined one.

    Certificates are JSON, which has no infinity.
    """
    expected64 = expected.double()
    error = float((found.double() - expected64).norm() / expected64.norm())
    return error if math.isfinite(error) else sys.float_info.max


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
    replay: Routing | None = None,
) -> Outputs:
    """Residual stream and the logits at the last positions of every prompt, in left-padded batches.

    Args:
        model: the causal language model.
        architecture: where its layers and routers lie.
        prompts: token ids.
        batch_size: prompts in a batch.
        advance: counts prompts.
        logit_positions: number of last positions.
        replay: of a run of the same prompts in the same batches, whose experts this one takes; its own unless given.
    """
    residuals: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    leaving: list[torch.Tensor] = []

    def keep(_module: object, _args: object, output: Any) -> None:  # noqa: ANN401 - tensor or tuple
        leaving[:] = [output[0] if isinstance(output, tuple) else output]

    # Not the final norm's input: opt-350m has no final norm.
    layers = len(model.get_submodule(architecture.layers))
    routers = architecture.router_paths(layers)
    routed: list[RouterCalls] = []
    padded = batches(prompts, batch_size, model.device)
    handle = model.get_submodule(architecture.layer_path(layers - 1)).register_forward_hook(keep)
    try:
        for number, batch in enumerate(padded):
            with watched_routers(model, routers, None if replay is None else replay.batches[number]) as calls:
                result = model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    position_ids=batch.position_ids,
                    use_cache=False,
                    logits_to_keep=logit_positions,
                )
            routed.append(calls)
            real = batch.attention_mask.bool()
            residuals.append(leaving[0][real].cpu())
            # opt of transformers 4.57 gives every position, whatever it is asked for.
            logits.append(result.logits[:, -logit_positions:][real[:, -logit_positions:]].cpu())
            advance(real.shape[0])
    finally:
        handle.remove()
    routing = routing_of(routed, [batch.attention_mask for batch in padded])
    return Outputs(torch.cat(residuals), torch.cat(logits), routing)


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
    model: PreTrainedModel,
    architecture: Architecture,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    advance: Advance,
    *,
    new_tokens: int,
    watcher: Callable[[], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] | None = None,
) -> Generated:
    """Exactly `new_tokens` greedy tokens after each prompt, past any EOS, with a KV cache and left padding.

    Args:
        model: the causal language model.
        architecture: where its layers and routers lie.
        prompts: token ids.
        batch_size: prompts in a batch.
        advance: counts prompts.
        new_tokens: number of new tokens.
        watcher: makes for each batch what is called at every step with ids and float32 logits [batch, vocabulary], and
            gives these back.
    """
    config = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0, use_cache=True
    )
    routers = architecture.router_paths(len(model.get_submodule(architecture.layers)))
    routed: list[RouterCalls] = []
    tokens: list[list[int]] = []
    padded = batches(prompts, batch_size, model.device)
    for batch in padded:
        with quiet_transformers(), no_inherited_settings(model), watched_routers(model, routers) as calls:
            ids = model.generate(
                inputs=batch.input_ids,
                attention_mask=batch.attention_mask,  # positions follow from it; given ones 4.57 would not extend
                generation_config=config,
                logits_processor=LogitsProcessorList([] if watcher is None else [watcher()]),
            )
        routed.append(calls)
        tokens.extend(ids[:, batch.input_ids.shape[1] :].tolist())
        advance(len(batch.input_ids))
    return Generated(tokens, routing_of(routed, [batch.attention_mask for batch in padded]))
