"""Which equivalent model edits get, what is refused kind by kind, and what is written into it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from alignez_bake.lowering.home import constant_has_home, find_home, unit_edits
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import LAYERLESS, Site
from tests.commands.small_bakes import edits_at, shifts_at, small_base

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.edit import Edit
    from alignez_bake.model_folder import ModelFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder(model_type)`: a tiny base. Never write into it."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = small_base(model_type, tmp_path_factory.mktemp("home") / model_type)
        return made[model_type]

    return make


def wanted(*edits: Edit) -> dict[Site, list[Edit]]:
    found: dict[Site, list[Edit]] = {}
    for edit in edits:
        found.setdefault(edit.site, []).append(edit)
    return found


def home_of(base: Path, *edits: Edit, **dials: float):
    return find_home(open_model_folder(base), wanted(*edits), dials, dtype=None)


def test_nothing_wanted_is_the_base_itself(folder):
    base = open_model_folder(folder("llama"))
    home = find_home(base, {}, {}, dtype=None)
    assert home.model is base
    assert (dict(home.refused), home.writes, home.changes) == ({}, {}, ())


def test_a_kind_without_a_switch_does_not_take_the_others_home(folder):
    """qwen3 has a switch for the biases of attention and none for the MLP's."""
    attention = edits_at(folder("qwen3"), "attn_write", constant=True)
    mlp = edits_at(folder("qwen3"), "mlp_write", constant=True)
    home = home_of(folder("qwen3"), *attention, *mlp)
    assert set(home.refused) == {Site("mlp_write", 0), Site("mlp_write", 1)}
    assert "no biases" in home.refused[Site("mlp_write", 0)].reason
    assert home.model.config["attention_bias"] is True
    assert [part.equals(attention[0]) for part in home.folded_parts(attention[0])] == [True]
    assert home_of(folder("qwen3"), *mlp).model.config == open_model_folder(folder("qwen3")).config


def test_units_of_one_layer_grow_all_and_are_written_into_one(folder):
    (edit,) = edits_at(folder("llama"), "mlp_write", layers=[1], reads="block", gate="relu")
    home = home_of(folder("llama"), edit)
    names = [f"model.layers.1.mlp.{name}" for name in ("gate_proj.weight", "gate_proj.bias", "up_proj.bias")]
    assert set(home.writes) == {*names, "model.layers.1.mlp.down_proj.weight"}
    grown = home.model.config["intermediate_size"]
    assert grown > 64
    assert home.model.tensors.entry("model.layers.0.mlp.up_proj.weight").shape == (grown, 32)
    assert "relu(t) as silu(βt)/β" in home.exactness(edit)
    assert home.folded_parts(edit) == ()


def test_the_constant_of_units_is_one_shift_with_all_dials(folder):
    first, second = (
        edits_at(folder("llama"), "mlp_write", layers=[0], reads="block", gate="relu", constant=True, seed=seed,
                 objective=name, strength=strength)[0]
        for seed, name, strength in ((0, "a", 2.0), (1, "b", 1.0))
    )  # fmt: skip
    home = home_of(folder("llama"), first, second, a=0.5, b=-3.0)
    (shift,) = home.folded_parts(first)
    assert home.folded_parts(second) == ()
    assert shift.left is None
    expected = 0.5 * 2.0 * first.bias.astype(np.float64) - 3.0 * second.bias.astype(np.float64)
    # A plan's arrays are stored in fp32.
    assert np.linalg.norm(shift.bias - expected) <= 1e-6 * np.linalg.norm(expected)


def test_what_folds_beside_units_is_widened_with_zeros(folder):
    (units,) = edits_at(folder("llama"), "mlp_write", layers=[0], reads="block", gate="relu")
    (reads_input,) = edits_at(folder("llama"), "mlp_write", layers=[1], reads="input")
    (gate,) = edits_at(folder("llama"), "mlp_gate", layers=[0], reads="input")
    home = home_of(folder("llama"), units)
    size = home.model.config["intermediate_size"]
    (wide,) = home.folded_parts(reads_input)
    assert wide.right.shape == (size, 2)
    assert np.array_equal(wide.right[:64], reads_input.right)
    assert not wide.right[64:].any()
    (wide,) = home.folded_parts(gate)
    assert wide.left.shape == (size, 2)
    assert np.array_equal(wide.left[:64], gate.left)
    assert not wide.left[64:].any()


def test_units_whose_constant_has_no_home_are_refused_whole(folder):
    """gpt_neox always has the MLP's biases; in qwen3 neither units nor biases of the MLP have a place."""
    for model_type, home_found in (("gpt_neox", True), ("qwen3", False)):
        (edit,) = edits_at(folder(model_type), "mlp_write", layers=[0], reads="block", gate="relu", constant=True)
        home = home_of(folder(model_type), edit)
        assert (edit.site in home.units) is home_found
        assert (edit.site in home.refused) is not home_found


def test_attentions_block_is_no_place_for_units(folder):
    (edit,) = edits_at(folder("llama"), "attn_write", layers=[0], reads="block", gate="relu")
    home = home_of(folder("llama"), edit)
    assert "hidden units of the MLP add to what the MLP writes" in home.refused[edit.site].reason


def test_a_tanh_is_not_made_of_pieces_without_being_asked(folder):
    (edit,) = edits_at(folder("llama"), "mlp_write", layers=[0], reads="block", gate="tanh")
    assert "a tanh is not exact" in home_of(folder("llama"), edit).refused[edit.site].reason


@pytest.mark.parametrize(
    ("model_type", "kind", "expected"),
    [
        ("llama", "attn_write", True),
        ("llama", "mlp_write", True),
        ("llama", "embed", True),
        ("llama", "residual", False),
        ("llama", "lm_head", False),
        ("mistral", "mlp_write", True),
        ("qwen3", "attn_write", True),
        ("qwen3", "mlp_write", False),
        ("gemma2", "mlp_write", False),
        ("gemma2", "embed", False),
        ("gpt2", "mlp_write", True),
        ("gpt2", "embed", False),
        ("mixtral", "mlp_write", False),
        ("phi3", "attn_write", False),
    ],
)
def test_whether_a_constant_has_a_home_is_what_the_lowering_finds(model_type, kind, expected, folder):
    base = open_model_folder(folder(model_type))
    site = Site(kind, None if kind in LAYERLESS else 0)
    assert constant_has_home(base, site) is expected
    # An adapter leaves the base as it is: of these only gpt2 has the bias already, and an embedding needs none.
    in_place = model_type == "gpt2" or kind == "embed"
    assert constant_has_home(base, site, rehoming=False) is (expected and in_place)
    if kind not in {"embed", "residual"} and expected:
        assert not refused_shift(base, site)


def refused_shift(base: ModelFolder, site: Site) -> bool:
    (shift,) = shifts_at(base.path, site.kind, layers=[0])
    home = find_home(base, {site: [shift]}, {}, dtype=None)
    return site in home.refused


def test_unit_edits_stop_where_the_output_is_read_behind_them(folder):
    (block,) = edits_at(folder("llama"), "mlp_write", layers=[0], reads="block", gate="relu")
    (output,) = edits_at(folder("llama"), "mlp_write", layers=[0])
    (shift,) = shifts_at(folder("llama"), "mlp_write", layers=[0])
    assert unit_edits((output, block, shift)) == (block,)
    assert unit_edits((block, output)) == ()
    assert unit_edits((block, replace(output, objective="b"))) == (block,)
    assert unit_edits((replace(block, positions="last"),)) == ()
    assert unit_edits((output, shift)) == ()
