"""What each edit of a plan reads while the model runs with all of them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from alignez_bake.capture.accumulators import in_float64
from alignez_bake.edit_plan import Group, SiteValues, apply_groups
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import length_sorted_batches, right_padded
from alignez_bake.lowering.hooks import edited_by_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from alignez_bake.edit import Edit, EditTensors
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Advance
    from alignez_bake.site import Site


class EditRows(NamedTuple):
    """Of one edit in one batch, a row for each real token.

    Attributes:
        read: r, float64 [n, d_read].
        block: what enters the block that the site's writer ends, float64 [n, d_block]; None unless asked for.
    """

    read: torch.Tensor
    block: torch.Tensor | None


def tensors_in_float64(edit: Edit, device: torch.device) -> EditTensors:
    """The edit's arrays as float64 tensors."""
    return edit.tensors(lambda array: torch.tensor(array, dtype=torch.float64, device=device))


def record_edits(
    lm: LanguageModel,
    plan: EditPlan,
    indices: Collection[int],
    sequences: Sequence[Sequence[int]],
    take: Callable[[int, EditRows], None],
    *,
    batch_size: int,
    advance: Advance,
    block: bool = False,
) -> None:
    """Run the model with the plan's edits and hand over what those at `indices` read, batch after batch.

    The rows of an edit are handed over while the forward pass is under way and are not kept, so memory is that of
    one site in one batch. An entry of an objective that has entries before it at its site reads what these left;
    edits of other sites act through the model. Padding is on the right and is not handed over.

    Args:
        lm: the model; hooks are put on it and taken off again.
        plan: edits of all positions.
        indices: places in the plan.
        sequences: token ids, each with at least one.
        take: called with the place and the rows, in the order in which the model reaches the sites.
        batch_size: sequences a forward pass.
        advance: told how many sequences have been read.
        block: whether the blocks' inputs are wanted; then every edit of `indices` is at a writer.

    Raises:
        BadInputError: a site that the model does not have, or an edit whose widths are not those of its site.
    """
    config = lm.model.config.to_dict()
    for site in plan.sites:
        lm.architecture.check_layer(site, config)
    reads_logits = any(site.kind == "lm_head" for site in plan.sites)
    model = lm.model if reads_logits else lm.model.get_submodule(lm.architecture.base_model_prefix)
    with torch.inference_mode(), ExitStack() as hooks:
        recorders = [_SiteRecorder(site, plan, indices, take, block=block) for site in plan.sites]
        for recorder in recorders:  # before the edits' own hooks, so that they see y as the map gives it
            for handle in recorder.register(lm):
                hooks.callback(handle.remove)
        hooks.enter_context(edited_by_hooks(lm.model, lm.architecture, plan))
        for batch in length_sorted_batches([len(sequence) for sequence in sequences], batch_size):
            padded = right_padded([sequences[index] for index in batch], lm.pad_id, lm.device)
            places = padded.attention_mask.flatten().nonzero()[:, 0]
            for recorder in recorders:
                recorder.places = places
            model(**padded._asdict(), use_cache=False)
            advance(len(batch))


class _Entry(NamedTuple):
    """An edit, its place in the plan, and the entries of its objective that come before it at its site."""

    place: int
    edit: Edit
    before: tuple[Edit, ...]


class _SiteRecorder:
    """The hooks of one site. Modules that see [B, T, d] and those that see [B·T, d] (OPT) are read alike."""

    def __init__(
        self,
        site: Site,
        plan: EditPlan,
        indices: Collection[int],
        take: Callable[[int, EditRows], None],
        *,
        block: bool,
    ) -> None:
        self.places = torch.empty(0, dtype=torch.long)
        self._site = site
        self._take = take
        here = [(index, edit) for index, edit in enumerate(plan.edits) if edit.site == site]
        self._edits = [edit for _, edit in here]
        self._wanted = [
            _Entry(
                index,
                edit,
                tuple(other for place, other in here if place < index and other.objective == edit.objective),
            )
            for index, edit in here
            if index in indices
        ]
        self._block_wanted = block and bool(self._wanted)
        self._block_input: torch.Tensor | None = None

    def register(self, lm: LanguageModel) -> list[RemovableHandle]:
        """Put the hooks on the model."""
        site, architecture = self._site, lm.architecture
        if site.kind in ("embed", "residual"):
            path = architecture.embed if site.layer is None else architecture.layer_path(site.layer)

            def stream_hook(_module: nn.Module, _args: object, output: Any) -> None:  # noqa: ANN401 - tensor or tuple
                self._record(output[0] if isinstance(output, tuple) else output, None)

            return [lm.model.get_submodule(path).register_forward_hook(stream_hook)]

        handles = []
        if self._block_wanted or any(edit.reads == "block" for edit in self._edits):

            def block_hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._block_input = args[0] if args else kwargs["hidden_states"]

            module = lm.model.get_submodule(architecture.block_path(site))
            handles.append(module.register_forward_pre_hook(block_hook, with_kwargs=True))
        linear = architecture.linear_site(site.kind, site.layer)

        def map_hook(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._record(output[..., linear.row_slice(output.shape[-1])], args[0])

        handles.append(lm.model.get_submodule(architecture.module_path(site)).register_forward_hook(map_hook))
        return handles

    def _record(self, output: torch.Tensor, module_input: torch.Tensor | None) -> None:
        whole = SiteValues(output, module_input, self._block_input)
        for edit in self._edits:
            _check_widths(edit, whole)
        if not self._wanted:
            return
        values = SiteValues(*(None if value is None else self._rows(value) for value in whole))
        self._block_input = None
        for place, edit, before in self._wanted:
            current = values.output
            if before and edit.reads == "output":
                current = apply_groups(
                    (Group(edit.objective, 1.0, before),),
                    values,
                    lambda other: tensors_in_float64(other, values.output.device),
                    None,  # no edit here is at the last position alone
                )
            self._take(place, EditRows(_read_of(edit, values, current), values.block))

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        flat = values.reshape(-1, values.shape[-1])
        return in_float64(flat.index_select(0, self.places.to(flat.device)))


def _read_of(edit: Edit, values: SiteValues, current: torch.Tensor) -> torch.Tensor:
    """r: `current` for an edit that reads the output, which entries before it may have changed."""
    found = {"output": current, "input": values.input, "block": values.block}[edit.reads]
    assert isinstance(found, torch.Tensor)
    return found


def _check_widths(edit: Edit, values: SiteValues) -> None:
    width = values.output.shape[-1]
    if edit.d_out != width:
        raise BadInputError(f"edit at {edit.site} has width {edit.d_out}, but the site's output has {width}")
    found = _read_of(edit, values, values.output).shape[-1]
    if edit.d_read not in (None, found):
        raise BadInputError(f"edit at {edit.site} reads {edit.d_read} values, but the site's {edit.reads} has {found}")
