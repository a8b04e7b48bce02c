"""Export of a causal model: one graph for the prompt and for each token after it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_export.attention import ATTENTION_OPSET
from alignez_bake.onnx_export.attention_layers import fuse_attention
from alignez_bake.onnx_export.cached_forward import CachedForward, cache_shapes
from alignez_bake.onnx_export.experts import experts_in_batches
from alignez_bake.onnx_export.last_row import one_hot_last_row
from alignez_bake.onnx_export.names import BATCH, LENGTH, PAST, TOTAL, GraphNames
from alignez_bake.onnx_export.opsets import DEFAULT_OPSET, NEWEST_OPSET, OLDEST_OPSET
from alignez_bake.onnx_export.saving import check_target, needs_external_data, save_graph
from alignez_bake.onnx_export.strengths import strengths_in_weights

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

# All different, so that no two axes are taken for one, and none 0 or 1, which would be taken for constants.
_ROWS, _NEW, _PAST = 2, 3, 5


def export_graph(
    model: PreTrainedModel, target: Path, *, opset: int = DEFAULT_OPSET, external_data: bool | None = None
) -> GraphNames:
    """Write a model as one ONNX graph: int64 ids, mask and positions and the cache in, all logits and the cache out.

    Axes are dynamic: any batch, any number of new tokens, any length of the cache, 0 included. Edits that are folded
    into the weights are in the initialisers; those of an inserted checkpoint are nodes.

    Args:
        model: in eval mode, on any device; it is traced and left as it was.
        target: the file to write, `*.onnx`. Its weights go to `<target>_data` beside it where they are external.
        opset: OLDEST_OPSET to NEWEST_OPSET.
        external_data: whether weights lie in a file of their own; unless given, where they are too large for one.

    Returns:
        The names of the inputs and outputs.

    Raises:
        BadInputError: an opset out of bounds; a target that exists or has another suffix; weights that are too large
            for one file where external data are refused; a model without positions, or with another cache than keys
            and values; packages that are missing.
        ValueError: a model in training mode, whose dropout would be traced.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise BadInputError(f"opset {opset} cannot be written: choose one of {OLDEST_OPSET} to {NEWEST_OPSET}")
    if model.training:
        raise ValueError("a model in training mode cannot be exported: call eval() first")
    check_target(target)
    external = needs_external_data(model, wanted=external_data)
    forward = CachedForward(model).eval()
    with experts_in_batches(model), strengths_in_weights(model):
        program, names = _traced(forward, opset)
        one_hot_last_row(program.model.graph, model)
        if opset >= ATTENTION_OPSET:
            # Soft caps stay written out: ONNX Runtime before 1.27 adds the mask before the cap, or refuses it on CUDA.
            fuse_attention(program.model, softcap=False)
        save_graph(program.model, target, external_data=external)
    return names


def _traced(forward: CachedForward, opset: int) -> tuple[torch.onnx.ONNXProgram, GraphNames]:
    one_token = cache_shapes(forward)
    names = GraphNames(len(one_token))
    past = [(keys.new_zeros(_past_shape(keys)), values.new_zeros(_past_shape(values))) for keys, values in one_token]
    ids = torch.zeros((_ROWS, _NEW), dtype=torch.long, device=forward.model.device)
    mask = ids.new_ones((_ROWS, _PAST + _NEW))
    positions = torch.arange(_PAST, _PAST + _NEW, device=ids.device).repeat(_ROWS, 1)
    new, cached = {0: BATCH, 1: LENGTH}, {0: BATCH, 2: PAST}
    with warnings.catch_warnings():
        # Axes that torch proves equal get one name, as we mean them to.
        warnings.filterwarnings("ignore", message=r".*The axis name: .* will not be used", category=UserWarning)
        # torch's own, of its own pytrees.
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
        program = torch.onnx.export(
            forward,
            (ids, mask, positions, past),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=names.inputs,
            output_names=names.outputs,
            dynamic_shapes=(new, {0: BATCH, 1: TOTAL}, new, [(cached, cached) for _ in past]),
        )
    assert program is not None
    return program, names


def _past_shape(one_token: torch.Tensor) -> tuple[int, int, int, int]:
    _, heads, _, width = one_token.shape
    return _ROWS, heads, _PAST, width
