"""What people are told of an equivalent."""

from __future__ import annotations

import json

import pytest

from alignez_bake.model_folder import open_model_folder
from alignez_bake.rehome.changes import changes
from alignez_bake.rehome.rehome import rehome
from alignez_bake.site import Site

ATTN = Site("attn_write", 0)


def test_a_switch_and_its_cost(tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    total = sum(base.tensors.read(name).size for name in base.tensors)
    added = 2 * (32 + 16 + 16 + 32)
    assert changes(base, rehome(base, bias_sites=[ATTN])) == (
        "config.json: attention_bias false -> true",
        "8 tensors added",
        f"{added} parameters added, {100 * added / total:.2g} % of the base's",
    )


def test_units_and_their_cost(tiny_folder):
    base = open_model_folder(tiny_folder("gpt2"))
    lines = changes(base, rehome(base, units={0: 2}))
    assert lines[:2] == ("config.json: n_inner 64 -> 128", "6 tensors grown")
    assert lines[2].startswith(f"{2 * 64 * (32 + 32 + 1):,} parameters added")


def test_another_type_with_what_it_writes_out(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("mistral", tmp_path / "base"))
    file = base.path / "config.json"
    config = json.loads(file.read_text())
    for name in ("use_cache", "rms_norm_eps"):
        del config[name]
    file.write_text(json.dumps(config))
    base = open_model_folder(base.path)
    lines = changes(base, rehome(base, bias_sites=[ATTN]))
    assert lines[0] == "model type mistral -> llama, an equivalent"
    assert "config.json: attention_bias absent -> true" in lines
    assert "config.json: mlp_bias absent -> false" in lines
    assert "config.json: sliding_window null -> absent" in lines
    assert "config.json: 2 defaults of mistral written out" in lines
    assert not any("use_cache" in line for line in lines)


def test_the_base_itself_has_no_changes(tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    assert changes(base, base) == ()


def test_what_is_no_equivalent_is_a_fault_of_ours(tiny_folder):
    llama, phi3 = (open_model_folder(tiny_folder(name)) for name in ("llama", "phi3"))
    with pytest.raises(ValueError, match="has no equivalent of another type"):
        changes(phi3, llama)
