"""One forward pass with recording: hooks that keep the rows which were asked for, and nothing else."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import torch

from alignez_bake.capture.spec import Reading
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import right_padded
from alignez_bake.language_model.logits import logits_of_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from alignez_bake.capture.spec import Context, MapSide
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.site import Site

    Keep = Callable[["MapReading", slice, torch.Tensor], None]


class MapReading(NamedTuple):
    """The input or the output of the map at a site, whatever the context."""

    site: Site
    side: MapSide

    def in_context(self, context: Context) -> Reading:
        """As a spec names it."""
        return Reading(context, self.side)


class Recorded(NamedTuple):
    """Rows of one forward pass, in the order of the batch's sequences.

    Attributes:
        values: for each reading [n, d] in the model's dtype: of each sequence its last `tail` tokens.
        logits: [n, vocabulary] over the tokens asked for; None unless asked for.
    """

    values: Mapping[MapReading, torch.Tensor]
    logits: torch.Tensor | None


def record(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    tails: Mapping[MapReading, Sequence[int]],
    *,
    logit_tails: Sequence[int] | None = None,
) -> Recorded:
    """Run the model over sequences padded on the right and keep the ends of what was asked for.

    A row is found by its place in the flattened batch, so modules that see [B, T, d] and modules that see
    [B·T, d] (OPT) are read alike, and padding cannot be recorded. The head runs at
    the columns that hold a row of logits that is asked for, and not at all without logits.

    Args:
        lm: the model; hooks that are registered on it already, such as edits, act first.
        sequences: token ids.
        tails: for each reading, how many tokens of each sequence to keep, counted from its end.
        logit_tails: the same for logits; None: none are computed.

    Raises:
        BadInputError: the input of a mixture of experts, which has no single one.
    """
    batch = right_padded(sequences, lm.pad_id, lm.device)
    width = batch.input_ids.shape[1]
    lengths = [len(sequence) for sequence in sequences]
    places: dict[tuple[int, ...], torch.Tensor] = {}

    def rows_of(tail: Sequence[int]) -> torch.Tensor:
        key = tuple(tail)
        if key not in places:
            places[key] = _places(lengths, key, width).to(lm.device)
        return places[key]

    values: dict[MapReading, torch.Tensor] = {}

    def keep(reading: MapReading, rows: slice, hidden: torch.Tensor) -> None:
        flat = hidden.reshape(-1, hidden.shape[-1])[:, rows]
        values[reading] = flat.index_select(0, rows_of(tails[reading]))

    with torch.inference_mode(), ExitStack() as hooks:
        for reading in tails:
            hooks.callback(_register(lm, reading, keep).remove)
        logits = None
        if logit_tails is None:
            lm.model.get_submodule(lm.architecture.base_model_prefix)(**batch._asdict(), use_cache=False)
        else:
            first = min(length - tail for length, tail in zip(lengths, logit_tails, strict=True))
            found = logits_of_columns(lm.model, batch, first, width)
            kept_rows = _places([length - first for length in lengths], logit_tails, width - first).to(lm.device)
            logits = found.reshape(-1, found.shape[-1]).index_select(0, kept_rows)
    return Recorded(values, logits)


def _places(lengths: Sequence[int], tail: Sequence[int], width: int) -> torch.Tensor:
    """Places in the flattened [B·T] of the last `tail` tokens of every sequence."""
    return torch.cat(
        [
            torch.arange(row * width + length - kept, row * width + length)
            for row, (length, kept) in enumerate(zip(lengths, tail, strict=True))
        ]
    )


def _register(lm: LanguageModel, reading: MapReading, keep: Keep) -> RemovableHandle:
    site, architecture = reading.site, lm.architecture
    if site.kind in ("embed", "residual"):
        path = architecture.embed if site.layer is None else architecture.layer_path(site.layer)

        def stream_hook(_module: nn.Module, _args: object, output: Any) -> None:  # noqa: ANN401 - tensor or tuple
            keep(reading, slice(None), output[0] if isinstance(output, tuple) else output)

        stream: nn.Module = lm.model.get_submodule(path)
        return stream.register_forward_hook(stream_hook)

    if site.kind == "lm_head":
        # Recordings run the model without its head: logits of a whole vocabulary are not held.
        raise BadInputError(f"{site} cannot be recorded: record the residual stream behind the last layer instead")
    linear = architecture.linear_site(site.kind, site.layer)
    if reading.side not in linear.legal_reads:
        raise BadInputError(f"the {reading.side} of {site} cannot be recorded: every expert has one of its own")

    def map_hook(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if reading.side == "input":
            keep(reading, slice(None), args[0])
        else:
            keep(reading, linear.row_slice(output.shape[-1]), output)

    linear_map: nn.Module = lm.model.get_submodule(architecture.module_path(site))
    return linear_map.register_forward_hook(map_hook)
