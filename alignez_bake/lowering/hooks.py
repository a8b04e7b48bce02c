"""The reference: the edits of a plan applied to a live model by forward hooks.

The baked model is compared with this one. The hook calls the same formula as the fold
(`edit_plan.apply_groups`), in float32 for weights of 16 or 32 bits and in float64 for float64.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from alignez_bake.edit_plan import SiteValues, apply_groups
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.edit import Edit, EditTensors, Positions
    from alignez_bake.edit_plan import EditPlan, Group
    from alignez_bake.site import Site


@dataclass
class BatchShape:
    """Batch and length of the forward call under way: some modules see their input flattened to 2-D (OPT)."""

    batch: int = 0
    length: int = 0

    def unflatten(self, values: torch.Tensor) -> torch.Tensor:
        """[B·T, d] -> [B, T, d]; [B, T, d] is left alone."""
        return values if values.dim() == 3 else values.view(self.batch, self.length, values.shape[-1])


@contextmanager
def tracked_batch_shape(model: nn.Module, architecture: Architecture) -> Iterator[BatchShape]:
    """Keep the shape of each forward call, read where the residual stream enters the first layer."""
    shape = BatchShape()

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        shape.batch, shape.length = hidden.shape[0], hidden.shape[1]

    handle = model.get_submodule(architecture.layer_path(0)).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield shape
    finally:
        handle.remove()


@contextmanager
def edited_by_hooks(
    model: nn.Module, architecture: Architecture, plan: EditPlan, *, positions: Positions | None = None
) -> Iterator[None]:
    """Inside this context the model runs with the plan's edits at every site.

    Args:
        model: the causal language model; its weights are not touched.
        architecture: where its sites lie.
        plan: what to apply.
        positions: instead of each edit's own: `last` is AlignEZ's rule (the last row of each forward
            call), which the report compares with `all`.

    Raises:
        BadInputError: a site that the architecture does not have, or what cannot be read there.
    """
    count = {architecture.layer_count: sum(1 for _ in model.get_submodule(architecture.layers).children())}
    for site in plan.sites:
        architecture.check_layer(site, count)
    for edit in plan.edits:
        _check_reads(edit, architecture)
    if any(site.kind == "lm_head" for site in plan.sites):
        _check_head(model, architecture)
    with ExitStack() as stack:
        shape = stack.enter_context(tracked_batch_shape(model, architecture))
        for site in plan.sites:
            groups = tuple(_with_positions(group, positions) for group in plan.groups_at(site))
            for handle in _register(model, architecture, site, groups, shape):
                stack.callback(handle.remove)
        yield


def _check_reads(edit: Edit, architecture: Architecture) -> None:
    """Refuse the writer's input at a mixture of experts: its module reads the block's, and each expert has its own."""
    if edit.site.kind in ("residual", "embed"):
        return
    legal = architecture.linear_site(edit.site.kind, edit.site.layer).legal_reads
    if edit.reads not in legal:
        raise BadInputError(
            f"an edit at {edit.site} reads the writer's {edit.reads}, but every expert has one of its own: in "
            f"{architecture.model_type} it can read {' or '.join(legal)}"
        )


def _check_head(model: nn.Module, architecture: Architecture) -> None:
    """Refuse a release of transformers that calls the head otherwise (gpt_neox before 5)."""
    path = architecture.head_site.module
    if path not in dict(model.named_children()):
        raise BadInputError(
            f"the {architecture.model_type} model of this transformers release has no module {path}, where edits at "
            "lm_head apply: use transformers 5, or leave those edits out"
        )


def _with_positions(group: Group, positions: Positions | None) -> Group:
    if positions is None:
        return group
    return group._replace(edits=tuple(replace(edit, positions=positions) for edit in group.edits))


def _register(
    model: nn.Module, architecture: Architecture, site: Site, groups: tuple[Group, ...], shape: BatchShape
) -> list[torch.utils.hooks.RemovableHandle]:
    handles = []
    block_input: list[torch.Tensor] = []
    if any(edit.reads == "block" for group in groups for edit in group.edits):

        def keep_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            block_input[:] = [args[0] if args else kwargs["hidden_states"]]

        block = model.get_submodule(architecture.block_path(site))
        handles.append(block.register_forward_pre_hook(keep_input, with_kwargs=True))
    cache: dict[tuple[int, torch.dtype, torch.device], EditTensors] = {}

    def edited(output: torch.Tensor, module_input: torch.Tensor | None) -> torch.Tensor:
        flat = output.dim() == 2
        work_dtype = torch.float64 if output.dtype == torch.float64 else torch.float32

        def widen(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else shape.unflatten(values).to(work_dtype)

        def tensors_of(edit: Edit) -> EditTensors:
            key = (id(edit), work_dtype, output.device)
            if key not in cache:
                cache[key] = edit.tensors(lambda array: torch.tensor(array, dtype=work_dtype, device=output.device))
            return cache[key]

        values = SiteValues(widen(output), widen(module_input), widen(block_input[0] if block_input else None))
        last = torch.zeros(values.output.shape[-2], 1, dtype=work_dtype, device=output.device)
        last[-1] = 1.0
        result: torch.Tensor = apply_groups(groups, values, tensors_of, last).to(output.dtype)
        return result.reshape(output.shape) if flat else result

    if site.kind in ("residual", "embed"):
        path = architecture.embed if site.kind == "embed" else architecture.layer_path(_layer(site))

        def stream_hook(_module: nn.Module, _args: object, output: Any) -> Any:  # noqa: ANN401 - tensor or tuple
            if isinstance(output, tuple):
                return (edited(output[0], None), *output[1:])
            return edited(output, None)

        handles.append(model.get_submodule(path).register_forward_hook(stream_hook))
        return handles

    linear = architecture.linear_site(site.kind, site.layer)

    def map_hook(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        rows = linear.row_slice(output.shape[-1])
        if rows == slice(0, output.shape[-1]):
            return edited(output, args[0])
        result = output.clone()
        result[..., rows] = edited(output[..., rows], args[0])
        return result

    handles.append(model.get_submodule(architecture.module_path(site)).register_forward_hook(map_hook))
    return handles


def _layer(site: Site) -> int:
    assert site.layer is not None
    return site.layer
