"""Level `tensors` of a graph passes on right exports and finds every wrong value."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.exporters.dtype import file_dtype
from alignez_bake.exporters.protocol import ExportSettings
from onnx import numpy_helper

from alignez_bake.certificate.graph_tensors import certify_graph_tensors
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.onnx_graph.initialisers import open_graph
from alignez_bake.onnx_optimise.optimise import optimise_graph
from alignez_bake.progress import NoProgress
from tests.baking import flipped, plan_for
from tests.inserted.saving import edit_at, load_inserted, plan_of

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder

WRITERS = ("attn_write", "mlp_write")


class Made(NamedTuple):
    """A base, the way of its edits, and the graph of the baked model."""

    base: ModelFolder
    lowering: Lowering
    graph: Path
    dtype: str | None

    def certify(self, graph: Path | None = None):
        return certify_graph_tensors(
            self.base, self.lowering, graph or self.graph, dtype=self.dtype, progress=NoProgress()
        )


class Case(NamedTuple):
    model_type: str
    plan: object = partial(plan_for, kinds=WRITERS)
    dtype: str | None = None
    base_dtype: torch.dtype = torch.float32
    config: dict[str, object] = {}  # noqa: RUF012 - never written


def inserted(base):
    """Gates at a writer of each layer, with s and c or without, strengths that are 1 or not, and a dial."""
    return plan_of(
        replace(edit_at(base, "attn_write", 0, gate="relu"), offset=None, bias=None),
        edit_at(base, "mlp_write", 1, gate="tanh", positions="last", strength=-1.5),
        edit_at(base, "mlp_write", 0, gate="tanh", reads="input", strength=0.3, objective="x"),
        x=0.7,
    )


def shifts(base):
    """Constants alone, and strengths of zero, which no product with L and c can hold."""
    alone = {"left": None, "right": None, "offset": None}
    return plan_of(
        replace(edit_at(base, "attn_write", 0, positions="last", strength=2.5), **alone),
        replace(edit_at(base, "mlp_write", 0, positions="last", strength=0.0), **alone),
        edit_at(base, "mlp_write", 1, gate="relu", strength=0.0),
    )


CASES = {
    "llama": Case("llama"),
    "rehomed": Case("mistral", partial(plan_for, kinds=WRITERS, constant=True), config={"tie_word_embeddings": True}),
    "conv1d": Case("gpt2", partial(plan_for, kinds=WRITERS, constant=True)),
    "gemma2": Case("gemma2", partial(plan_for, kinds=WRITERS, scale=4.0), base_dtype=torch.bfloat16),
    "experts": Case("mixtral"),
    "inserted": Case("llama", inserted, dtype="float16"),
    "shifts": Case("llama", shifts),
}


def make(case: Case, folder: Path, save_tiny, *, edited: bool = True) -> Made:
    base = open_model_folder(save_tiny(case.model_type, folder / "base", dtype=case.base_dtype, overrides=case.config))
    lowering = lower(case.plan(base), base, CheckpointExporter(), code=True, dtype=file_dtype(case.dtype))
    baked, graph = folder / "baked" if edited else base.path, folder / "graph" / "model.onnx"
    graph.parent.mkdir()
    if edited:
        (baked / "alignez").mkdir(parents=True)
        CheckpointExporter().export(base, lowering, baked, ExportSettings(case.dtype), NoProgress())
    export_graph(load_inserted(baked, dtype="auto"), graph, external_data=True)
    return Made(base, lowering, graph, case.dtype)


@pytest.fixture(scope="session")
def made(tmp_path_factory, save_tiny):
    """`made(name of a case)`, each exported once a session. Never write into it."""
    known: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in known:
            known[name] = make(CASES[name], tmp_path_factory.mktemp("graph"), save_tiny)
        return known[name]

    return get


@pytest.fixture
def changed(tmp_path):
    """`changed(made, {initialiser: change of its values})`: a copy of the graph with other values on disk."""

    def copy(source: Made, changes) -> Path:
        folder = shutil.copytree(source.graph.parent, tmp_path / "changed")
        graph, opened = folder / source.graph.name, open_graph(source.graph)
        model = onnx.load(graph, load_external_data=False)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, change in changes.items():
            values, entry = change(opened.read(name).copy()), opened.entry(name)
            assert (values.shape, values.dtype) == (entry.shape, entry.dtype)
            assert values.tobytes() != opened.read(name).tobytes()
            if entry.file is None:
                tensors[name].CopyFrom(numpy_helper.from_array(values, name))
                continue
            with (folder / entry.file.name).open("r+b") as file:
                file.seek(entry.offset)
                file.write(values.tobytes())
        graph.write_bytes(model.SerializeToString())
        return graph

    return copy


def holder(made: Made, parameter: str) -> str:
    """The initialiser that is a parameter or was folded from it alone."""
    graph, name = open_graph(made.graph), f"model.{parameter}"
    (found,) = [entry for entry in graph if name == entry or graph.entry(entry).folded_from == (name,)]
    return found


@pytest.mark.parametrize("name", CASES)
def test_right_graphs_pass(made, name):
    one = made(name)
    found, contents = one.certify(), checkpoint_contents(one.base, one.lowering)
    assert (found.verdict, found.reasons) == ("passed", ())
    assert {entry.name for entry in found.deliveries} == set(contents.edited.names)
    assert found.added == len(contents.added)
    assert len(contents.names) == found.untouched + len(found.deliveries) + found.added + len(found.not_comparable)
    assert len(contents.edited.names) + found.added > 0
    if found.deliveries:
        assert 0.99 <= found.lowest_share <= 1.01
    assert found.large_others == ()
    # gemma's norms are 1 + weight, which the optimiser computes.
    norms = {key for key in contents.names if "norm" in key and one.base.architecture.model_type == "gemma2"}
    assert set(found.not_comparable) == norms
    assert all("folded from it and other values" in reason for reason in found.not_comparable.values())


@pytest.mark.parametrize("name", ["llama", "experts"])
def test_fused_operators_leave_the_tensors_as_they_are(made, tmp_path, name):
    one = made(name)
    assert optimise_graph(one.graph, tmp_path / "model.onnx").fused
    before, after = one.certify(), one.certify(tmp_path / "model.onnx")
    assert after.verdict == "passed"
    assert (after.deliveries, after.untouched) == (before.deliveries, before.untouched)


def test_json_has_the_figures_of_the_level_and_of_graphs(made):
    found = made("gemma2").certify()
    figures = json.loads(json.dumps(found.to_json()))
    assert figures["level"] == "tensors"
    assert figures["verdict"] == "passed"
    assert figures["edited_tensors"] == 4
    assert figures["untouched_tensors"] == 11
    assert len(figures["tensors"]) == 4
    assert len(figures["not_comparable"]) == 9
    assert figures["not_comparable"][-1].startswith("model.norm.weight (")
    assert figures["other_initialisers"] == found.others > 0


O_PROJ = "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("name", "parameter", "tensor"),
    [
        ("llama", O_PROJ, O_PROJ),
        ("gemma2", O_PROJ, O_PROJ),
        ("rehomed", "model.layers.0.self_attn.o_proj.bias", "model.layers.0.self_attn.o_proj.bias"),
        ("conv1d", "transformer.h.0.attn.c_proj.weight", "transformer.h.0.attn.c_proj.weight"),
        ("experts", "model.layers.1.mlp.experts.down_proj", "model.layers.1.block_sparse_moe.experts.2.w2.weight"),
    ],
)
def test_one_value_of_an_edited_tensor_is_found(made, changed, name, parameter, tensor):
    one = made(name)
    initialiser = holder(one, parameter)
    found = one.certify(changed(one, {initialiser: off_by_much}))
    (reason,) = [reason for reason in found.reasons if reason.split(":")[0].split(",")[0] == tensor]
    assert found.verdict == "failed"
    assert initialiser in reason
    assert "differs from the formula's in 1 of" in reason


@pytest.mark.parametrize(
    ("name", "parameter", "tensor"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("llama", "model.norm.weight", "model.norm.weight"),
        ("llama", "model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("rehomed", "lm_head.weight", "model.embed_tokens.weight"),
        ("conv1d", "transformer.h.1.ln_1.bias", "transformer.h.1.ln_1.bias"),
        ("experts", "model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.block_sparse_moe.experts.2.w1.weight"),
        ("experts", "model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"),
        ("inserted", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_one_bit_of_another_tensor_is_found(made, changed, name, parameter, tensor):
    one = made(name)
    initialiser = holder(one, parameter)
    found = one.certify(changed(one, {initialiser: flipped}))
    (reason,) = found.reasons
    assert found.verdict == "failed"
    assert tensor in reason
    assert initialiser in reason
    assert "differs from the base's in 1 of" in reason


@pytest.mark.parametrize(
    ("layer", "part"), [("1.mlp.down_proj", "left"), ("0.self_attn.o_proj", "right"), ("1.mlp.down_proj", "bias")]
)
def test_one_bit_of_an_inserted_edit_is_found(made, changed, layer, part):
    one = made("inserted")
    key = f"model.layers.{layer}.alignez_edits.0.{part}"
    initialiser = holder(one, key)
    (reason,) = [reason for reason in one.certify(changed(one, {initialiser: flipped})).reasons if key in reason]
    assert f"{key}: initialiser {initialiser}" in reason
    assert "differs from the edit's in 1 of" in reason


def test_an_edit_without_its_strength_is_found(made, changed):
    one = made("inserted")
    left = holder(one, "model.layers.1.mlp.down_proj.alignez_edits.0.left")
    (reason,) = one.certify(changed(one, {left: lambda values: values / np.float32(-1.5)})).reasons
    assert left in reason
    assert "differs from the edit's in" in reason


@pytest.mark.parametrize("map_name", ["o_proj", "q_proj"])
def test_a_square_map_that_was_not_transposed_is_found(made, changed, map_name):
    one = made("llama")
    key = f"model.layers.1.self_attn.{map_name}.weight"
    initialiser = holder(one, key)
    reasons = one.certify(changed(one, {initialiser: lambda values: values.T.copy()})).reasons
    assert f"{key}: initialiser {initialiser}ᵀ differs" in reasons[0]


def test_a_square_map_that_lies_as_the_file_has_it_may_not_be_transposed(made, changed):
    one = made("conv1d")
    key = "transformer.h.1.attn.c_proj.weight"
    reasons = one.certify(changed(one, {f"model.{key}": lambda values: values.T.copy()})).reasons
    assert f"{key}: initialiser model.{key} differs" in reasons[0]


def test_layers_that_were_exchanged_are_found(made, changed):
    one = made("llama")
    names = [holder(one, f"model.layers.{layer}.mlp.gate_proj.weight") for layer in (0, 1)]
    graph = open_graph(one.graph)
    changes = {
        mine: lambda _values, other=other: graph.read(other).copy()
        for mine, other in zip(names, reversed(names), strict=True)
    }
    assert len(one.certify(changed(one, changes)).reasons) == 2


def test_experts_that_were_exchanged_are_found(made, changed):
    one = made("experts")
    initialiser = holder(one, "model.layers.0.mlp.experts.down_proj")
    found = one.certify(changed(one, {initialiser: lambda values: values[[0, 2, 1, 3]]}))
    assert [reason.split(",")[0] for reason in found.reasons] == [
        f"model.layers.0.block_sparse_moe.experts.{expert}.w2.weight" for expert in (1, 2)
    ]


def test_halves_of_one_expert_that_were_exchanged_are_found(made, changed):
    one = made("experts")

    def exchange(values):
        values[3] = np.concatenate((values[3, 64:], values[3, :64]))
        return values

    found = one.certify(changed(one, {holder(one, "model.layers.1.mlp.experts.gate_up_proj"): exchange}))
    assert len(found.reasons) == 2
    assert all("where others like it are as" in reason for reason in found.reasons)


def test_the_graph_of_the_base_is_not_that_of_the_edits(made, tmp_path, save_tiny):
    unedited = make(CASES["llama"], tmp_path, save_tiny, edited=False)
    found = made("llama").certify(unedited.graph)
    assert found.verdict == "failed"
    assert len(found.deliveries) == 4
    for entry in found.deliveries:
        assert abs(entry.share) < 1e-6
        assert any(reason.startswith(f"{entry.name}: initialiser") for reason in found.reasons)
    assert "rounding ate the edit in 4 tensor(s)" in found.reasons[-1]


def test_the_graph_of_a_fold_lacks_inserted_edits(made):
    one = made("inserted")
    found = one.certify(made("llama").graph)
    missing = [reason for reason in found.reasons if "which the edits change, is not in the graph" in reason]
    assert len(missing) == 10
    assert "no initialiser has its name or its values" in missing[0]


def off_by_much(values):
    """One value that is no neighbour of the right one."""
    at = tuple(size // 2 for size in values.shape)
    values[at] = -2 * values[at] - 1
    return values
