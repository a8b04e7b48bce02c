"""The start of every run: what is found stands in the result and in the plan, and stops nothing."""

import json

from alignez_bake import align
from alignez_bake.cli.align import _tables
from alignez_bake.edit_file import read_edits
from alignez_bake.feasibility.assess import CHEAP_PAIRS

QUERIES = [f"pot {number}?" for number in range(12)]


def test_a_run_is_foretold_and_goes_on(tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base", overrides={"max_position_embeddings": 96})
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))
    result = align(
        base,
        tmp_path / "out",
        queries=tmp_path / "queries.txt",
        prompt_template="{query}",
        method="ridge",
        artefact="edits",
    )
    found = result.feasibility["helpful"]
    # Random weights obey nobody, and yet there is a result.
    assert found.prediction.verdict in ("unclear", "unlikely")
    assert (tmp_path / "out").is_dir()
    assert found.pairs.judged == min(CHEAP_PAIRS, result.fitted.filters["helpful"].kept)
    assert result.to_json()["feasibility"] == {"helpful": found.to_json()}
    provenance = read_edits(tmp_path / "out" / "edits.safetensors").provenance
    assert provenance["feasibility"]["helpful"] == json.loads(json.dumps(found.to_json()))
    shown = [entry for entry in _tables(result) if isinstance(entry, str)]
    assert f"Feasibility of helpful, from {found.pairs.judged} pairs: {found.prediction.sentence}." in shown
    assert f"Note: {found.prediction.advice[0]}." in shown
