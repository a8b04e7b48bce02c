"""The demo's base with a few pairs of its own, and searches whose answers are planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignez_bake.capture.run import Capture
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.preference_pairs.filters import match_pairs
from alignez_bake.preference_pairs.generation import generate_pairs
from alignez_bake.prompts.objective import read_objectives_file
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import read_queries
from alignez_bake.tuning.candidate import TunedObjective
from alignez_bake.tuning.remembering_capture import RememberingCapture

DEMO = Path(__file__).parents[2] / "examples" / "demo"


@pytest.fixture(scope="session")
def lm(tiny_folder):
    """A tiny random model. Never change it."""
    return load_language_model(open_model_folder(tiny_folder("llama")))


@pytest.fixture(scope="session")
def form(lm):
    return prompt_form(lm.tokenizer)


@pytest.fixture(scope="session")
def demo_lm():
    """The demo's trained base. Never change it."""
    return load_language_model(open_model_folder(DEMO / "base"))


@pytest.fixture(scope="session")
def demo_form(demo_lm):
    return prompt_form(demo_lm.tokenizer)


@pytest.fixture(scope="session")
def helpful():
    return read_objectives_file(DEMO / "objectives.json")["helpful"]


@pytest.fixture(scope="session")
def demo_queries():
    """`(those of pairs, held-out ones)`."""
    queries = read_queries(DEMO / "queries.jsonl").queries
    return queries[:24], queries[24:48]


@pytest.fixture(scope="session")
def demo_objective(demo_lm, demo_form, helpful, demo_queries):
    """The demo's objective with a capture over pairs that the base wrote."""
    records = generate_pairs(
        demo_lm,
        demo_queries[0],
        [helpful],
        demo_form,
        None,
        batch_size=48,
        seed=0,
        characteristic_tokens=16,
        answer_tokens=32,
    ).records
    pairs, _ = match_pairs(records, "helpful")
    capture = Capture(demo_lm, tokenise_pairs(pairs, helpful, demo_form), batch_size=32)
    return TunedObjective(helpful, 1.0, RememberingCapture(capture))
