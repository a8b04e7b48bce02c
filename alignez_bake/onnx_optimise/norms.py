"""Norms and the sums before them, by onnxscript's own rules.

RMS norms become SimplifiedLayerNormalization, and where the sum of the residual stream comes before one, both become
SkipSimplifiedLayerNormalization; likewise SkipLayerNormalization. The rules note what they check; all are exact but for
the order of sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.onnx_export.walking import made_by

if TYPE_CHECKING:
    import onnx_ir


def fuse_norms(model: onnx_ir.Model) -> None:
    """Replace what the rules find."""
    # They come with an extra.
    from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization  # noqa: PLC0415
    from onnxscript.rewriter.ort_fusions.skip_normalization import (  # noqa: PLC0415
        fuse_skip_layer_normalization,
        fuse_skip_rms_normalization,
    )

    fuse_rms_normalization(model)
    _renamed(model.graph)
    fuse_skip_rms_normalization(model)
    fuse_skip_layer_normalization(model)


def _renamed(graph: onnx_ir.Graph) -> None:
    """RMSNormalization, which opset 23 has, under the name that Runtime gave it before, and that the rules know."""
    for node in graph:
        if made_by(node.outputs[0], "RMSNormalization") is not None:
            node.op_type = "SimplifiedLayerNormalization"
