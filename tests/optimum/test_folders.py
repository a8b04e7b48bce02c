"""optimum opens what transformers 5 has written, and says what the edited model says there and here."""

from __future__ import annotations

import json

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.onnx_export.graphs import TOLERANCE
from tests.optimum.names import FOLDERS, INSERTED, TEXT, WRONG_EMPTY_CACHE
from tests.running import relative

pytestmark = pytest.mark.optimum

MOVED = 100


def marked(name):
    """The name, expected to fail where optimum does."""
    reason = WRONG_EMPTY_CACHE.get(name)
    if reason is None:
        return name
    # What ONNX Runtime says of a cache that has not the graph's shape.
    return pytest.param(name, marks=pytest.mark.xfail(strict=True, raises=InvalidArgument, reason=reason))


every_folder = pytest.mark.parametrize("name", list(FOLDERS))
that_optimum_runs = pytest.mark.parametrize("name", list(map(marked, FOLDERS)))


@pytest.mark.parametrize("rows", [1, 4])
@that_optimum_runs
def test_optimum_generates_the_tokens_of_the_edited_model(name, rows, written_by_5):
    from tests.optimum.running import open_with_optimum, tokens

    expected = json.loads((written_by_5 / "expected.json").read_text())
    found = tokens(open_with_optimum(written_by_5 / "graph"), rows)
    assert found == expected["tokens"][str(rows)]
    assert expected["moved"] >= MOVED * TOLERANCE


@pytest.mark.parametrize("name", [marked(name) for name in FOLDERS if name != INSERTED])
def test_optimum_gives_the_logits_and_tokens_of_torch_here(name, written_by_5):
    """torch here knows the rotary positions from the config beside the graph alone."""
    from tests.optimum.running import logits, open_with_optimum, tokens

    config = AutoConfig.from_pretrained(written_by_5 / "graph", attn_implementation="eager")
    edited, base = (
        AutoModelForCausalLM.from_pretrained(written_by_5 / folder, config=config).eval()
        for folder in ("checkpoint", "base")
    )
    graph = open_with_optimum(written_by_5 / "graph")
    expected = logits(edited)
    assert relative(logits(graph), expected) <= TOLERANCE
    assert relative(logits(base), expected) >= MOVED * TOLERANCE
    assert tokens(graph, 4) == tokens(edited, 4)


@every_folder
def test_config_and_tokenizer_are_read_here(name, written_by_5):
    """Whether or not optimum can run the graph."""
    expected = json.loads((written_by_5 / "expected.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(written_by_5 / "graph")
    assert tokenizer(TEXT)["input_ids"] == expected["ids"]
    assert "<extra>" in tokenizer.all_special_tokens
    with pytest.raises(ValueError, match="TokenizersBackend"):
        AutoTokenizer.from_pretrained(written_by_5 / "base")  # else there is nothing to see to
    assert AutoConfig.from_pretrained(written_by_5 / "graph").model_type == FOLDERS[name]
