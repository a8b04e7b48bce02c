import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_bake.prompts.objective import Objective
from alignez_bake.prompts.persona import characteristic_prompt, clean_characteristic, persona_sentence

HUMOR = Objective("humor", "humorous", "dull and boring")


def test_the_texts_of_the_paper():
    assert characteristic_prompt(HUMOR, "good", "Why {x}?") == (
        "Why {x}?\nYou are a humorous assistant. Your answer to this query should: "
    )
    assert characteristic_prompt(HUMOR, "bad", "Why?") == (
        "Why?\nPretend you are a dull and boring assistant. Your response to this query should: "
    )
    assert persona_sentence(HUMOR, "good", "make {them} laugh") == (
        "You are a humorous assistant. Your answer should make {them} laugh."
    )
    assert persona_sentence(HUMOR, "bad", "be long") == (
        "Pretend you are a dull and boring assistant. Your answer should be long."
    )
    assert persona_sentence(HUMOR, "good") == "You are a humorous assistant. Your answer should be humorous."
    assert persona_sentence(HUMOR, "bad", "") == (
        "Pretend you are a dull and boring assistant. Your answer should be dull and boring."
    )


@pytest.mark.parametrize(
    ("generated", "clean"),
    [
        ("name the remedy.", "name the remedy"),
        ("  be kind and\tclear . ", "be kind and clear"),
        ("\n\n1. Be brief.\n2. Be clear.", "Be brief"),
        ("- be kind!", "be kind"),
        ("be kind. Be clear.", "be kind"),
        ("use 3.5 cups of water", "use 3.5 cups of water"),
        ("be kind...", "be kind"),
        ("be\x00 \x1b[31mred", "be [31mred"),
        ("...", ""),
        (" \n ", ""),
        ("", ""),
    ],
)
def test_cleaning(generated, clean):
    assert clean_characteristic(generated) == clean


@given(st.text())
def test_a_clean_characteristic_fits_into_the_sentence(text):
    clean = clean_characteristic(text)
    assert clean == clean.strip()
    assert clean == "" or clean.isprintable()
    assert not clean.endswith((".", "!", "?"))
    sentence = persona_sentence(HUMOR, "good", clean)
    assert not sentence.endswith("..")
