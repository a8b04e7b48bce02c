"""The demo's base obeys its personas, one of random weights does not: they must get different verdicts."""

from dataclasses import replace

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.feasibility.assess import CHEAP_PAIRS, assess, assess_cheaply, spread
from alignez_bake.feasibility.tables import feasibility_note, feasibility_tables
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.report.tables import print_tables
from tests.feasibility.conftest import HELPFUL, QUERIES

SETTINGS = {"answer_tokens": 32, "batch_size": 64, "seed": 0}


@pytest.fixture(scope="module")
def demo_found(demo_lm, demo_records):
    return assess(demo_lm, demo_records, HELPFUL, prompt_form(demo_lm.tokenizer), answers=QUERIES, **SETTINGS)


def test_a_base_that_obeys_is_likely_to_be_helped(demo_found, capsys):
    assert demo_found.prediction.verdict == "likely"
    assert demo_found.prediction.advice == ()
    # By rule 92 % are good under the persona, 48 % without (examples/README.md).
    assert 0.25 < demo_found.prediction.gain.low < 0.45 < demo_found.prediction.gain.high < 0.65
    assert demo_found.obedience.contrast.value > 0.75
    assert demo_found.pairs.told_apart.value > 0.85
    assert len(demo_found.layers) == 6
    print_tables(*feasibility_tables({"helpful": demo_found}))
    shown = capsys.readouterr().out
    assert "Prediction for helpful: likely helps; expected gain +" in shown
    assert "the persona imitated, +4" in shown
    values = demo_found.to_json()
    assert [layer["layer"] for layer in values["layers"]] == list(range(6))
    assert values["prediction"]["verdict"] == "likely"


def test_where_less_of_it_is_wanted_the_bad_persona_leads(demo_lm, demo_records):
    form = prompt_form(demo_lm.tokenizer)
    found = assess_cheaply(demo_lm, demo_records, [HELPFUL], form, weights={"helpful": -1.0}, **SETTINGS)["helpful"]
    assert found.wanted == "bad"
    assert found.prediction.verdict != "unlikely"
    assert found.obedience.room.value > 0.2
    assert found.obedience.wanted.value > 0.8
    # The pairs' sides stay what they are.
    assert found.pairs.told_apart.value > 0.85


def test_random_weights_are_not_likely_to_be_helped(tiny_lm, written):
    records = written(tiny_lm)
    form = prompt_form(tiny_lm.tokenizer)
    full = assess(tiny_lm, records, HELPFUL, form, answers=QUERIES, **SETTINGS)
    cheap = assess_cheaply(tiny_lm, records, [HELPFUL], form, weights={"helpful": 1.0}, **SETTINGS)["helpful"]
    # It judges its own answers well, and there is a number for the room; what it lacks is what carries over.
    assert full.obedience.contrast.low > 0
    assert full.prediction.verdict in ("unclear", "unlikely")
    assert cheap.prediction.verdict in ("unclear", "unlikely")
    assert "does not follow its personas" in " ".join(full.prediction.advice)
    assert any("Note: the base does not follow" in note for note in feasibility_note({"helpful": cheap}))


def test_the_start_of_a_run_asks_little(demo_lm, demo_records, monkeypatch):
    form = prompt_form(demo_lm.tokenizer)
    sequences = []
    iterate = __import__("alignez_bake.feasibility.contrast", fromlist=["x"]).iter_answer_logits

    def counted(lm, contexts, answers, *, batch_size):
        sequences.extend(contexts)
        return iterate(lm, contexts, answers, batch_size=batch_size)

    monkeypatch.setattr("alignez_bake.feasibility.contrast.iter_answer_logits", counted)
    found = assess_cheaply(demo_lm, demo_records, [HELPFUL], form, weights={"helpful": 1.0}, **SETTINGS)["helpful"]
    assert len(sequences) == 6 * CHEAP_PAIRS
    assert (found.prediction.verdict, found.layers, found.pairs.judged) == ("likely", (), CHEAP_PAIRS)
    (note,) = feasibility_note({"helpful": found})
    assert note.startswith(f"Feasibility of helpful, from {CHEAP_PAIRS} pairs: likely helps; expected gain +")


def test_swapped_sides_are_seen(demo_lm, demo_records):
    other = {"good": "bad", "bad": "good"}
    swapped = [replace(record, side=other[record.side], seed=None) for record in demo_records]
    form = prompt_form(demo_lm.tokenizer)
    found = assess_cheaply(demo_lm, swapped, [HELPFUL], form, weights={"helpful": 1.0}, **SETTINGS)["helpful"]
    assert not found.pairs.own
    assert found.pairs.told_apart.high < 0.5
    assert found.prediction.verdict == "unlikely"
    assert "the sides look swapped" in " ".join(found.prediction.advice)


def test_too_few_pairs(demo_lm, demo_records):
    form = prompt_form(demo_lm.tokenizer)
    with pytest.raises(BadInputError, match=r"too few pairs for objective 'helpful': 2 pairs kept.*give more queries"):
        assess(demo_lm, demo_records[:4], HELPFUL, form, **SETTINGS)


def test_spread():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(range(10), 4) == [0, 2, 5, 7]
