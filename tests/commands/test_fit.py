"""`fit` with edits that cannot be folded: what the file holds, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from alignez_bake import bake, commands, fit, verify
from alignez_bake.edit_file import read_edits
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_tiny) -> Path:
    """A tiny llama. Never write into it."""
    return save_tiny("llama", tmp_path_factory.mktemp("fit") / "base")


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Twelve queries; all good answers end in one word, all bad ones in another, so that the pairs agree in sign."""
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(12):
            for side, end in (("good", "water"), ("bad", "no")):
                record = {"query": f"pot {number}?", "side": side, "answer": f" {number} pots {end}"}
                file.write(json.dumps(record) + "\n")
    return path


def test_gated_edits_of_the_last_position_are_saved(base, pairs, tmp_path):
    out = tmp_path / "edits.safetensors"
    result = fit(
        base,
        pairs,
        out,
        method="alignez_v2",
        prompt_template="{query}",
        gated=True,
        positions="last",
        top_layers=1,
        strength=0.5,
    )
    plan = read_edits(out)
    assert [edit.gate for edit in plan.edits] == ["relu", "tanh"]
    assert {edit.positions for edit in plan.edits} == {"last"}
    assert {edit.strength for edit in plan.edits} == {0.5}
    assert len({edit.site for edit in plan.edits}) == 1
    assert plan.provenance["settings"]["positions"] == "last"
    assert plan.provenance["settings"]["gated"] is True
    assert plan.provenance["settings"]["top_layers"] == 1
    assert plan.provenance["notes"] == list(result.fitted.notes)
    assert "weights cannot" in plan.provenance["notes"][0]
    left_out = [site for site in plan.provenance["sites"]["helpful"] if "skipped" in site]
    assert left_out[0]["skipped"] == "its score is not among the 1 largest"
    assert all(0 < site["score"] <= 1 for site in plan.provenance["sites"]["helpful"])


@pytest.mark.parametrize("method", ["ridge", "alignez_v1", "ccs", "mean_difference", "shift"])
def test_every_method_writes_edits_of_the_last_position(method, base, pairs, tmp_path):
    out = tmp_path / "edits.safetensors"
    fit(base, pairs, out, method=method, prompt_template="{query}", positions="last")
    plan = read_edits(out)
    assert {edit.positions for edit in plan.edits} == {"last"}
    every = tmp_path / "every.safetensors"
    fit(base, pairs, every, method=method, prompt_template="{query}")
    assert {edit.positions for edit in read_edits(every).edits} == {"all"}
    assert "positions" not in read_edits(every).provenance["settings"]


@pytest.mark.parametrize("method", ["alignez_v1", "alignez_v2", "ccs"])
def test_a_method_chooses_its_layers_by_its_own_rule(method, base, pairs, tmp_path):
    out = tmp_path / "edits.safetensors"
    fit(base, pairs, out, method=method, prompt_template="{query}", top_layers="auto")
    plan = read_edits(out)
    assert plan.provenance["settings"]["top_layers"] == "auto"
    # Of two layers the rule always leaves one.
    assert len({edit.site for edit in plan.edits}) == 1
    skipped = [site["skipped"] for site in plan.provenance["sites"]["helpful"] if "skipped" in site]
    assert len(skipped) == 1
    assert "largest" in skipped[0]


@pytest.mark.parametrize(
    "asked",
    [{"positions": "middle"}, {"gated": True}, {"top_layers": 1}, {"method": "ccs", "top_layers": "many"}],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(asked, base, pairs, tmp_path, monkeypatch):
    def load(*_args, **_settings):
        raise AssertionError("a model was loaded before the settings were checked")

    monkeypatch.setattr(commands.fit, "load_language_model", load)
    with pytest.raises(BadInputError):
        fit(base, pairs, tmp_path / "edits.safetensors", **asked)
    assert not (tmp_path / "edits.safetensors").exists()


def test_a_tied_head_is_baked_as_one_of_its_own(pairs, tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "tied", overrides={"tie_word_embeddings": True})
    edits = tmp_path / "edits.safetensors"
    fit(base, pairs, edits, method="contrastive_decoding", prompt_template="{query}", untie=True)
    assert str(read_edits(edits).edits[-1].site) == "lm_head"
    result = bake(base, edits, tmp_path / "out")
    assert result.verdict == "passed"
    assert [decision.route for decision in result.lowering.decisions] == ["fold", "fold", "rehome"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert verify(tmp_path / "out", model=base).verdict == "passed"
