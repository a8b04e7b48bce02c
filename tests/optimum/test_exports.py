"""Here, with transformers 4: our export, and optimum's own export of our folded checkpoint."""

from __future__ import annotations

import pytest
import torch

from alignez_bake.commands.bake import bake
from tests.baking import plan_for
from tests.onnx_export.graphs import TOLERANCE
from tests.running import load, relative

pytestmark = [pytest.mark.optimum, pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2"])]

MOVED = 100


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_folder):
    """`checkpoint(model_type)`: the base, a plan and the folded checkpoint, made once."""
    made = {}

    def make(model_type):
        if model_type not in made:
            base = tiny_folder(model_type)
            out = tmp_path_factory.mktemp(model_type) / "checkpoint"
            bake(base, plan_for(base), out)
            made[model_type] = base, plan_for(base), out
        return made[model_type]

    return make


def test_our_export_works_here_and_runs_in_optimum(model_type, checkpoint, tmp_path):
    from tests.optimum.running import logits, open_with_optimum, tokens

    base, plan, folder = checkpoint(model_type)
    result = bake(base, plan, tmp_path / "graph", artefact="onnx", verify="tensors")
    assert result.verdict == "passed", result.reasons
    graph, model = open_with_optimum(tmp_path / "graph"), load(folder, torch.float32)
    assert relative(logits(graph), logits(model)) <= TOLERANCE
    assert relative(logits(load(base, torch.float32)), logits(model)) >= MOVED * TOLERANCE
    for rows in (1, 4):
        assert tokens(graph, rows) == tokens(model, rows)


def test_optimums_own_export_takes_our_checkpoint(model_type, checkpoint, tmp_path):
    from optimum.exporters.onnx import main_export

    from tests.optimum.running import logits, open_with_optimum, tokens

    base, _, folder = checkpoint(model_type)
    main_export(str(folder), tmp_path / "graph", task="text-generation-with-past")
    graph, model = open_with_optimum(tmp_path / "graph"), load(folder, torch.float32)
    assert relative(logits(graph), logits(model)) <= TOLERANCE
    assert relative(logits(load(base, torch.float32)), logits(model)) >= MOVED * TOLERANCE
    assert tokens(graph, 4) == tokens(model, 4)
