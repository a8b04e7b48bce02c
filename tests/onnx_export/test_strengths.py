"""An inserted edit's strength goes into its tensors for the time of an export."""

from __future__ import annotations

import pytest
import torch

from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_export.strengths import strengths_in_weights
from tests.inserted.saving import edit_at, load_inserted, plan_of, save_inserted
from tests.running import relative
from tests.tiny_models import VOCABULARY

IDS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
SITE = "model.layers.1.mlp.down_proj"


@pytest.fixture
def inserted(tiny_folder, tmp_path):
    """A llama with one edit of a strength."""

    def made(strength):
        base = open_model_folder(tiny_folder("llama"))
        plan = plan_of(edit_at(base, "mlp_write", 1, gate="tanh", strength=strength))
        return load_inserted(save_inserted(base.path, plan, tmp_path / "inserted"), dtype=torch.float32)

    return made


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_function_is_the_same_and_the_model_gets_its_own_back(inserted):
    model = inserted(-1.5)
    edit = model.get_submodule(SITE).alignez_edits["0"]
    before, expected = state(model), logits(model)
    with strengths_in_weights(model):
        assert edit.strength == 1.0
        assert edit.left.equal(before[f"{SITE}.alignez_edits.0.left"] * -1.5)
        assert edit.bias.equal(before[f"{SITE}.alignez_edits.0.bias"] * -1.5)
        assert relative(logits(model), expected) <= 1e-5
        edit.left.data = edit.left.data / -1.5
        assert relative(logits(model), expected) >= 100 * 1e-5
    assert edit.strength == -1.5
    after = model.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


@pytest.mark.parametrize("strength", [0.0, 1e38, 1e-42])
def test_a_strength_that_the_tensors_cannot_hold_stays(strength, inserted):
    model = inserted(strength)
    edit = model.get_submodule(SITE).alignez_edits["0"]
    edit.left.data *= 100
    before = state(model)
    with strengths_in_weights(model):
        assert edit.strength == strength
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
