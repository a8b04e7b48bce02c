"""The functions that scripts call: one for each command, and paths may be text."""

from __future__ import annotations

import importlib

import alignez_bake
from alignez_bake import EditPlan, Site, bake, explain, inspect, read_edits, verify, write_edits
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from tests.random_edits import edit_for_slot


def test_the_steps_run_from_python_with_paths_as_text(tmp_path, tiny_folder):
    base = tiny_folder("llama")
    plan = EditPlan((edit_for_slot(find_slot(open_model_folder(base), Site("mlp_write", 1)), reads="input"),))
    edits, out = str(tmp_path / "edits.safetensors"), str(tmp_path / "aligned")
    write_edits(plan, edits)
    assert read_edits(edits).edits[0].equals(plan.edits[0])
    assert explain(str(base), edits).lowering.decisions[0].route == "fold"
    assert bake(str(base), edits, out).verdict == "passed"
    assert inspect(out).edits == inspect(edits).edits
    assert verify(out, level="tensors").verdict == "passed"


def test_importing_a_subpackage_hides_no_function():
    importlib.import_module("alignez_bake.preference_pairs.filters")
    for name in (
        "align",
        "bake",
        "bake_onnx",
        "compare",
        "evaluate",
        "explain",
        "fit",
        "inspect",
        "pairs",
        "push",
        "restore",
        "verify",
    ):
        assert callable(getattr(alignez_bake, name))
