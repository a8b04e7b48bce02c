"""What cannot be patched is refused by name, and nothing is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from alignez_bake.commands.bake_onnx import bake_onnx
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import BaseFingerprint, EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site
from tests.baking import nothing_written
from tests.onnx_patch.graphs import GRAPH, config_changed, edit_at, plan_at, rewritten

SITE = Site("mlp_write", 1)


@pytest.fixture
def refused(own_graph, tiny_folder, tmp_path):
    """`refused(message, change=None, plan=None, **settings)`: the patch of a changed llama graph is refused."""
    base = own_graph("external", "llama")

    def check(message, change=None, plan=None, **settings):
        if change is not None:
            change(base)
        plan = plan_at(tiny_folder("llama")) if plan is None else plan
        with nothing_written(tmp_path), pytest.raises(BadInputError, match=message):
            bake_onnx(base, plan, tmp_path / "out", **settings)

    return check


def in_graph(change):
    return lambda base: rewritten(base / GRAPH, change)


def locations(value):
    def change(model):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = value

    return in_graph(change)


def rename_input(model):
    for value in model.graph.input:
        if value.name == "position_ids":
            value.name = "token_type_ids"


def without_cache(model):
    kept = [value for value in model.graph.input if not value.name.startswith("past")]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def old_opset(model):
    model.opset_import[0].version = 12


def not_finite(model):
    for tensor in model.graph.initializer:
        if tensor.dims == [64, 32]:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((64, 32), np.nan, np.float32), name))


def integers(model):
    for tensor in model.graph.initializer:
        if tensor.dims == [64, 32]:
            tensor.data_type = onnx.TensorProto.INT32


def genai_config(text):
    return lambda base: (base / "genai_config.json").write_text(text)


GRAPHS = [
    ("which this runner does not know", in_graph(rename_input)),
    ("it has no cache", in_graph(without_cache)),
    ("has opset 12, and 14 is the least", in_graph(old_opset)),
    ("is missing: copy it too", lambda base: (base / f"{GRAPH}_data").unlink()),
    ("in '../model.onnx_data', and only a file in the model's own folder is opened", locations("../model.onnx_data")),
    ("in '/etc/passwd', and only a file in the model's own folder is opened", locations("/etc/passwd")),
    ("holds 0 .onnx files", lambda base: (base / GRAPH).unlink()),
    ("holds 2 .onnx files", lambda base: (base / "decoder.onnx").write_bytes(b"")),
    ("has no config.json and no genai_config.json", lambda base: (base / "config.json").unlink()),
    ("model_type 'mamba' is not described here", lambda base: config_changed(base, model_type="mamba")),
    ("cut short or no ONNX model", lambda base: (base / GRAPH).write_bytes((base / GRAPH).read_bytes()[:500])),
    ("values that are not finite", in_graph(not_finite)),
    ("data type number 6: edits fold into", in_graph(integers)),
    ("has a bias, and no Add of an initialiser follows it", lambda base: config_changed(base, mlp_bias=True)),
    ("layers.0.self_attn.out_proj was looked for", lambda base: config_changed(base, model_type="opt")),
    ("names the graph 'other.onnx'", genai_config('{"model": {"decoder": {"filename": "other.onnx"}}}')),
    ("describes no decoder", genai_config('{"model": {}}')),
    ("inserted edits of an earlier bake", lambda base: config_changed(base, alignez_edits=[])),
]


@pytest.mark.parametrize(("message", "change"), GRAPHS, ids=[message for message, _ in GRAPHS])
def test_graphs_that_cannot_be_patched(refused, message, change):
    refused(message, change)


@pytest.mark.parametrize(
    ("site", "width", "message"),
    [
        (Site("mlp_write", 2), 32, "out of range: the model has layers 0 to 1"),
        (Site("residual", 0), 32, "is no map, and a patch edits maps alone.*--as onnx"),
        (Site("embed"), 32, "is no map"),
        (SITE, 48, "has width 48, but the graph's map has width 32"),
    ],
)
def test_sites_that_the_graph_lacks(refused, site, width, message):
    edit = Edit(site, left=np.ones((width, 1)), right=np.ones((width, 1)))
    refused(message, plan=EditPlan((edit,)))


def test_widths_of_what_is_read(refused):
    for reads, message in (("input", "input of width 32, but the graph's is 64"), ("block", "width 33.*is 32")):
        right = np.ones((33 if reads == "block" else 32, 1))
        refused(message, plan=EditPlan((Edit(SITE, left=np.ones((32, 1)), right=right, reads=reads),)))


def test_experts_are_refused_by_name(own_graph, tiny_folder, tmp_path):
    base = own_graph("dynamo", "llama")
    config_changed(base, model_type="mixtral")
    plan = EditPlan((edit_at(tiny_folder("llama"), SITE),))
    with pytest.raises(BadInputError, match=r"mlp_write.1 is a mixture of experts"):
        bake_onnx(base, plan, tmp_path / "out")


def test_no_edits(refused):
    refused("there are no edits to bake", plan=EditPlan(()))


def test_another_base(refused, tiny_folder, save_tiny, tmp_path):
    refused("was made of another base", model=save_tiny("llama", tmp_path / "other", seed=3))
    refused("is a llama by its config, and .* a gpt2", model=tiny_folder("gpt2"))
    wide = save_tiny("llama", tmp_path / "wide", overrides={"intermediate_size": 96})
    plan = EditPlan((edit_at(tiny_folder("llama"), SITE),))
    refused("is a map .* and the base's .*: the graph was made of another base", plan=plan, model=wide)


def test_edits_of_another_base(refused, tiny_folder, own_graph, tmp_path):
    other = BaseFingerprint("gpt2", "0" * 64, "0" * 64)
    plan = replace(plan_at(tiny_folder("llama")), base=other)
    refused("the edits were made for a gpt2", plan=plan)
    refused("the edits were made for another base", plan=replace(plan, base=replace(other, model_type="llama")),
            model=tiny_folder("llama"))  # fmt: skip
    result = bake_onnx(tmp_path / "base", plan, tmp_path / "out", allow_other_base=True)
    assert result.verdict == "passed"


def test_results_never_lie_in_their_base(own_graph, tiny_folder):
    base = own_graph("external", "llama")
    for out in (base, base / "out"):
        with pytest.raises(BadInputError, match="--out"):
            bake_onnx(base, plan_at(tiny_folder("llama")), out)


def test_an_overflow_is_named(refused, tiny_folder):
    for gate in ("identity", "relu"):
        plan = plan_at(tiny_folder("llama")).scaled(1e39)
        refused("overflows F32", plan=EditPlan(tuple(replace(edit, gate=gate) for edit in plan.edits)))


def test_a_dry_run_decides_and_writes_nothing(own_graph, tiny_folder, tmp_path):
    base = own_graph("external", "llama")
    with nothing_written(tmp_path):
        result = bake_onnx(base, plan_at(tiny_folder("llama")), tmp_path / "out", dry_run=True)
    assert (result.levels, result.verdict, len(result.decisions)) == ((), None, 4)


def test_a_device_that_is_not_there(refused):
    refused("provider 'cuda' is not there", device="cuda")
