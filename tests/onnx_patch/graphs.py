"""Graphs of tiny models as different exporters write them, and the hooked model beside a patched graph."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir
import pytest
import torch

from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_export.cached_forward import CachedForward, cache_shapes
from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.onnx_export.names import (
    ATTENTION_MASK,
    BATCH,
    INPUT_IDS,
    LENGTH,
    LOGITS,
    PAST,
    POSITION_IDS,
    TOTAL,
    GraphNames,
)
from alignez_bake.onnx_export.saving import save_graph
from alignez_bake.site import Site
from tests.onnx_export.graphs import Graph, Torch, next_batch, prompts
from tests.random_edits import random_edit
from tests.running import load, relative

if TYPE_CHECKING:
    from alignez_bake.edit import Edit

WRITERS = ("attn_write", "mlp_write")
GRAPH = "model.onnx"
ROOT = Path(__file__).parents[2]


def dynamo_graph(base: Path, folder: Path, *, external: bool) -> None:
    """Our own export."""
    _copy_configs(base, folder)
    export_graph(load(base, torch.float32), folder / GRAPH, external_data=external)


def traced_graph(base: Path, graph: Path, folder: Path, *, external: bool) -> None:
    """Our own export that was made before, whose weights lie in one file: as it is, or beside a file of weights."""
    _copy_configs(base, folder)
    if external:
        save_graph(onnx_ir.load(graph), folder / GRAPH, external_data=True)
    else:
        shutil.copyfile(graph, folder / GRAPH)


def torchscript_graph(base: Path, folder: Path) -> None:
    """What optimum does: torch's TorchScript exporter, whose nodes are named by paths."""
    _copy_configs(base, folder)
    model = load(base, torch.float32)
    model.config._attn_implementation = "eager"
    forward = CachedForward(model).eval()
    one = cache_shapes(forward)
    names = GraphNames(len(one))
    past = [tuple(part.new_zeros(2, part.shape[1], 5, part.shape[3]) for part in pair) for pair in one]
    ids = torch.zeros(2, 3, dtype=torch.long)
    axes: dict[str, Any] = {name: {0: BATCH, 1: LENGTH} for name in (INPUT_IDS, POSITION_IDS, LOGITS)}
    axes |= {ATTENTION_MASK: {0: BATCH, 1: TOTAL}}
    axes |= {name: {0: BATCH, 2: PAST} for name in names.past} | {name: {0: BATCH, 2: TOTAL} for name in names.present}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and traces what depends on data
        torch.onnx.export(
            forward,
            (ids, ids.new_ones((2, 8)), torch.arange(5, 8).repeat(2, 1), past),
            folder / GRAPH,
            dynamo=False,
            input_names=list(names.inputs),
            output_names=list(names.outputs),
            dynamic_axes=axes,
            opset_version=18,
        )


def builder_graph(base: Path, folder: Path, *, precision: str) -> None:
    """The builder of onnxruntime-genai; skipped where it is not installed."""
    if find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed, whose builder makes this graph")
    words = ["-i", base, "-o", folder, "-p", precision, "-e", "cpu", "-c", folder / "cache"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)


def optimum_graph(base: Path, folder: Path) -> None:
    """optimum's own command, from the environment that `make optimum` makes; skipped where that is not there."""
    command = Path(os.environ.get("OPTIMUM", ROOT / ".venv-optimum")) / "bin" / "optimum-cli"
    if not command.is_file():
        pytest.skip(f"there is no {command}: optimum needs an environment of its own, which `make optimum` makes")
    words = ["export", "onnx", "--model", base, "--task", "text-generation-with-past", folder]
    subprocess.run([str(command), *map(str, words)], check=True, capture_output=True)


def _copy_configs(base: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)


def plan_at(base: Path, kinds=WRITERS, *, reads: str = "output", layers=(0, 1), **settings: Any) -> EditPlan:
    """One random edit at every layer's site of each kind, of the widths of the model, made for any base."""
    return EditPlan(
        tuple(edit_at(base, Site(kind, layer), reads=reads, **settings) for kind in kinds for layer in layers)
    )


def edit_at(base: Path, site: Site, *, reads: str = "output", **settings: Any) -> Edit:
    """A random edit of a site of a model folder."""
    folder = open_model_folder(base)
    slot = find_slot(folder, site)
    width = {"output": slot.d_out, "input": slot.d_in, "block": find_slot(folder, Site("attn_write", 0)).d_out}[reads]
    return random_edit(site, slot.d_out, width, reads=reads, **settings)


def hooked_difference(base: Path, plan: EditPlan, graph: Path) -> tuple[float, float]:
    """How far a patched graph is from the hooked model, and how far the edits move the model, of the logits.

    Both run on four prompts of different lengths, padded on the left, with an empty cache, and on three more tokens
    behind it; padding is left out.
    """
    folder = open_model_folder(base)
    runner, model = Graph(graph, GraphNames(folder.num_layers)), Torch(load(base, torch.float32))
    with edited_by_hooks(model.model, folder.architecture, plan):
        hooked = _logits(model)
    return relative(_logits(runner), hooked), relative(_logits(model), hooked)


def _logits(runner: Graph | Torch) -> torch.Tensor:
    batch = prompts(4)
    first, past = runner.step(batch, runner.empty_cache(4))
    more = torch.randint(3, 300, (4, 3), generator=torch.Generator().manual_seed(11))
    second, _ = runner.step(next_batch(batch, more), past)
    return torch.cat((first[batch.attention_mask.bool()], second.flatten(0, 1)))


def operators(graph: Path) -> list[str]:
    """Of every node, in order."""
    return [node.op_type for node in onnx.load(graph, load_external_data=False).graph.node]


def rewritten(graph: Path, change) -> None:
    """Write a graph anew after `change(model)`; external data stay where they are."""
    model = onnx.load(graph, load_external_data=False)
    change(model)
    graph.write_bytes(model.SerializeToString())


def config_changed(folder: Path, **entries: Any) -> None:
    """Write config.json with other entries; None takes one out."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
