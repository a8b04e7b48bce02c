"""Which way each edit takes: all of a site the same, natively where that is exact, and refusals that say what else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from alignez_bake.exporters.registry import exporter_named

from alignez_bake.commands.bake import bake
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import fold_refusal
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.baking import nothing_written
from tests.commands.small_bakes import edits_at, routes_of, shifts_at, small_base
from tests.random_edits import random_edit

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A tiny llama, untied, without biases. Never write into it."""
    return small_base("llama", tmp_path_factory.mktemp("llama") / "base")


def lowered(base: Path, *edits: Edit, code: bool = True, artefact: str = "checkpoint", **weights: float) -> Lowering:
    return lower(EditPlan(edits, weights=weights), open_model_folder(base), exporter_named(artefact), code=code)


def test_a_linear_edit_behind_a_gated_one_is_inserted_with_it(llama):
    (gated,) = edits_at(llama, "mlp_write", layers=[0], gate="relu")
    (linear,) = edits_at(llama, "mlp_write", layers=[0], seed=1)
    (other,) = edits_at(llama, "mlp_write", layers=[1], seed=2)
    for order in ((gated, linear, other), (linear, gated, other)):
        lowering = lowered(llama, *order)
        assert routes_of(lowering) == {"mlp_write.0": "insert", "mlp_write.1": "fold"}
        (insert,) = lowering.inserts
        assert [edit.gate for edit in insert.groups[0].edits] == [edit.gate for edit in order[:2]]
        (fold,) = lowering.folds
        assert str(fold.slot.site) == "mlp_write.1"
        assert {decision.reason for decision in lowering.decisions if decision.route == "insert"} == {
            "gate 'relu' is not linear, so no weight can hold it"
        }


def test_parallel_objectives_of_one_site_go_the_same_way_and_keep_their_dials(llama):
    (gated,) = edits_at(llama, "attn_write", layers=[0], gate="tanh", objective="a")
    (linear,) = edits_at(llama, "attn_write", layers=[0], objective="b")
    lowering = lowered(llama, gated, linear, a=0.5, b=-2.0)
    assert routes_of(lowering) == {"attn_write.0": "insert"}
    assert [(group.objective, group.weight) for group in lowering.inserts[0].groups] == [("a", 0.5), ("b", -2.0)]
    elsewhere = replace(linear, site=replace(linear.site, layer=1))
    lowering = lowered(llama, gated, elsewhere, a=0.5, b=-2.0)
    assert routes_of(lowering) == {"attn_write.0": "insert", "attn_write.1": "fold"}
    assert [(group.objective, group.weight) for group in lowering.folds[0].groups] == [("b", -2.0)]
    assert [(group.objective, group.weight) for group in lowering.inserts[0].groups] == [("a", 0.5)]


def test_units_carry_what_comes_before_them_and_not_what_reads_them(llama):
    (block,) = edits_at(llama, "mlp_write", layers=[0], reads="block", gate="relu")
    (output,) = edits_at(llama, "mlp_write", layers=[0], seed=1)
    assert routes_of(lowered(llama, output, block)) == {"mlp_write.0": "rehome"}
    assert routes_of(lowered(llama, block, output)) == {"mlp_write.0": "insert"}
    # Another objective's entries do not read what the units give, nor do those of a shift or of the writer's input.
    assert routes_of(lowered(llama, block, replace(output, objective="b"))) == {"mlp_write.0": "rehome"}
    (shift,) = shifts_at(llama, "mlp_write", layers=[0])
    (reads_input,) = edits_at(llama, "mlp_write", layers=[0], reads="input")
    assert routes_of(lowered(llama, block, shift, reads_input)) == {"mlp_write.0": "rehome"}


def test_what_folds_before_units_is_one_fold_of_the_grown_model(llama):
    (output,) = edits_at(llama, "mlp_write", layers=[0], seed=1)
    (block,) = edits_at(llama, "mlp_write", layers=[0], reads="block", gate="relu", constant=True)
    lowering = lowered(llama, output, block)
    (fold,) = lowering.folds
    assert fold.slot.d_in > 64
    assert fold.slot.bias == "model.layers.0.mlp.down_proj.bias"
    assert [edit.rank for group in fold.groups for edit in group.edits] == [2, 0]
    assert lowering.writes
    linear, units = (decision.exactness for decision in lowering.decisions)
    assert linear == "exact: all that is added is zero but for the edits, rounded once to F32"
    assert units.startswith("relu(t) as silu(βt)/β")


@pytest.mark.parametrize("kind", ["residual", "mlp_write", "attn_write"])
def test_without_code_the_flag_and_the_other_formats_are_named(kind, llama, tmp_path):
    plan = EditPlan(tuple(edits_at(llama, kind, gate="relu")))
    with nothing_written(tmp_path), pytest.raises(BadInputError) as caught:
        bake(llama, plan, tmp_path / "out")
    message = str(caught.value)
    assert f"2 of 2 edits cannot be baked as checkpoint: {kind}.0, {kind}.1: gate 'relu' is not linear" in message
    assert "it needs an inserted module, a small code file in the result: --trust-remote-code" in message
    assert message.endswith("; --as can carry them: checkpoint --trust-remote-code, onnx, edits")


@pytest.mark.parametrize("artefact", ["adapter", "gguf"])
def test_formats_without_modules_name_those_that_carry_the_edit(artefact, llama, tmp_path):
    plan = EditPlan(tuple(edits_at(llama, "mlp_write", gate="relu")))
    with nothing_written(tmp_path), pytest.raises(BadInputError) as caught:
        bake(llama, plan, tmp_path / "out", artefact=artefact, trust_remote_code=True)
    assert f"2 of 2 edits cannot be baked as {artefact}: mlp_write.0, mlp_write.1: gate 'relu'" in str(caught.value)
    assert "--as can carry them: checkpoint --trust-remote-code, onnx, edits" in str(caught.value)


def test_only_formats_that_carry_all_refused_edits_are_named(llama, tmp_path):
    constants = edits_at(llama, "mlp_write", layers=[0], constant=True)
    shifts = shifts_at(llama, "residual", layers=[1])
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=r"--as can carry them: checkpoint[^;]*edits$"):
        bake(llama, EditPlan((*constants, *shifts)), tmp_path / "out", artefact="adapter")


def test_require_fold_refuses_modules_whatever_else_is_allowed(llama, tmp_path):
    (gated,) = edits_at(llama, "mlp_write", layers=[0], gate="relu")
    native = edits_at(llama, "attn_write", constant=True)
    plan = EditPlan((gated, *native))
    for flag in (False, True):
        with (
            nothing_written(tmp_path),
            pytest.raises(BadInputError, match=r"1 of 3 edits .* mlp_write\.0: gate 'relu'"),
        ):
            bake(llama, plan, tmp_path / "out", require_fold=True, trust_remote_code=flag)
    result = bake(llama, EditPlan(tuple(native)), tmp_path / "out", require_fold=True, trust_remote_code=True)
    assert routes_of(result.lowering) == {"attn_write.0": "rehome", "attn_write.1": "rehome"}


def test_a_base_that_is_remote_code_gets_no_modules(llama, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in llama.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = (base / "config.json").read_text().replace("{", '{\n  "auto_map": {"AutoModelForCausalLM": "own.Own"},', 1)
    (base / "config.json").write_text(config)
    gated, linear = (EditPlan(tuple(edits_at(base, "mlp_write", **fields))) for fields in ({"gate": "relu"}, {}))
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=r"code of its own \(auto_map in config\.json\)"):
        bake(base, gated, tmp_path / "out", trust_remote_code=True)
    assert bake(base, linear, tmp_path / "out").verdict == "passed"


@pytest.mark.parametrize(
    ("widths", "reads", "reason"),
    [
        ((31, 31), "output", "the edit has width 31, the site's output has 32"),
        ((32, 33), "input", "the edit reads 33 values, the site's input has 64"),
        ((32, 31), "block", "the edit reads 31 values, the site's block has 32"),
    ],
)
@pytest.mark.parametrize("artefact", ["checkpoint", "adapter", "gguf", "edits"])
def test_another_models_widths_fit_no_format(widths, reads, reason, artefact, llama):
    edit = random_edit(Site("mlp_write", 0), *widths, reads=reads)
    lowering = lowered(llama, edit, artefact=artefact)
    assert [(decision.route, decision.reason) for decision in lowering.decisions] == [("refuse", reason)]
    assert (lowering.folds, lowering.inserts) == ((), ())


def test_a_layer_that_is_not_there_is_a_refusal_beside_other_decisions(llama):
    first, second = edits_at(llama, "mlp_write")
    lowering = lowered(llama, first, replace(second, site=replace(second.site, layer=7)))
    assert [decision.route for decision in lowering.decisions] == ["fold", "refuse"]
    assert "7" in lowering.decisions[1].reason
    with pytest.raises(BadInputError, match=r"1 of 2 edits cannot be baked as checkpoint: mlp_write\.7: "):
        lowering.require_complete()


def test_every_decision_says_what_it_costs(llama):
    lowering = lowered(
        llama,
        *edits_at(llama, "attn_write", layers=[0]),
        *edits_at(llama, "attn_write", layers=[1], constant=True),
        *edits_at(llama, "mlp_write", layers=[0], reads="block", gate="relu"),
        *edits_at(llama, "mlp_write", layers=[1], gate="relu"),
    )
    fold, bias, units, module = lowering.decisions
    assert (fold.route, fold.exactness, fold.cost) == ("fold", "exact, rounded once to F32", "none: same tensors")
    assert (bias.route, bias.exactness) == (
        "rehome",
        "exact: all that is added is zero but for the edits, rounded once to F32",
    )
    assert "config.json: attention_bias" in bias.cost
    assert (units.route, module.route) == ("rehome", "insert")
    assert "relu(t) as silu(βt)/β" in units.exactness
    assert "within" in units.exactness
    assert module.cost == f"a code file; {2 * 2 * 32} parameters in fp32"


class GraphLike:
    """An artefact that can hold modules, but no other model than the base: a graph that is already there."""

    name = "graph"
    routes = frozenset({"fold", "insert"})
    exactness = "exact"
    cost = "a node"

    def supports(self, edit, slot):
        return fold_refusal(edit, slot)


def test_what_keeps_the_base_as_it_is_gets_modules_instead_of_an_equivalent(llama):
    base = open_model_folder(llama)
    (shift,) = shifts_at(llama, "mlp_write", layers=[0])
    (linear,) = edits_at(llama, "mlp_write", layers=[1])
    lowering = lower(EditPlan((shift, linear)), base, GraphLike(), code=True)
    assert routes_of(lowering) == {"mlp_write.0": "insert", "mlp_write.1": "fold"}
    assert lowering.home is base
    assert lowering.home_changes == ()
    assert [insert.site for insert in lowering.inserts] == [shift.site]
    rehomed = lower(EditPlan((shift, linear)), base, exporter_named("checkpoint"), code=True)
    assert routes_of(rehomed)["mlp_write.0"] == "rehome"
    assert rehomed.home is not base
