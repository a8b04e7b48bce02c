"""The demo model was trained on texts of its own; they must be those that the tool uses."""

from __future__ import annotations

import pytest

from alignez_bake.prompts.objective import Objective
from alignez_bake.prompts.persona import characteristic_prompt, persona_sentence
from examples import prompts
from examples.worlds import WORLDS

QUERY = "How do I clean a copper kettle?"


@pytest.mark.parametrize("world", sorted(WORLDS))
@pytest.mark.parametrize("side", ["good", "bad"])
def test_persona_texts_agree(world, side):
    theirs = WORLDS[world].objective
    ours = Objective(theirs.name, theirs.good, theirs.bad)
    assert prompts.characteristic_prompt(QUERY, theirs, side) == characteristic_prompt(ours, side, QUERY)
    for characteristic in ("", "name the remedy"):
        expected = persona_sentence(ours, side, characteristic)
        assert prompts.persona_sentence(theirs, side, characteristic).rstrip("\n") == expected
