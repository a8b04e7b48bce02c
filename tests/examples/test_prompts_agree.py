"""The demo model was trained on texts of its own; they must be those that the tool uses."""

from __future__ import annotations

import pytest

from alignez_bake.prompts.objective import Objective
from alignez_bake.prompts.persona import characteristic_prompt, persona_sentence
from alignez_bake.prompts.prompt_form import prompt_form
from examples import prompts
from examples.corpus import pretraining_documents
from examples.tokenizer import encode_parts, train_tokenizer
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


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_the_tool_reads_the_ids_that_were_trained_on(world):
    tokenizer = train_tokenizer(pretraining_documents(world, 60, seed=0), world.prompt_template)
    form = prompt_form(tokenizer, world.prompt_template)
    query = world.queries("pairs")[0]["query"]
    prompt = prompts.prompt_form(query, world.prompt_template)
    sentence = prompts.persona_sentence(world.objective, "bad")
    assert form.context_ids(query, None) == encode_parts(tokenizer, (prompt,))
    assert form.context_ids(query, sentence.rstrip("\n")) == encode_parts(tokenizer, (sentence, prompt))
