"""The demo's base with pairs of its own, a tiny random one, and figures that are planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignez_bake.feasibility.contrast import PersonaContrast
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.preference_pairs.generation import generate_pairs
from alignez_bake.prompts.objective import Objective
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import read_queries

DEMO = Path(__file__).parents[2] / "examples" / "demo"
HELPFUL = Objective("helpful", "helpful", "useless")
QUERIES = 64


@pytest.fixture(scope="session")
def tiny_lm(tiny_folder):
    """A tiny random model. Never change it."""
    return load_language_model(open_model_folder(tiny_folder("llama")))


@pytest.fixture(scope="session")
def demo_lm():
    """The demo's trained base. Never change it."""
    return load_language_model(open_model_folder(DEMO / "base"))


@pytest.fixture(scope="session")
def queries():
    return [query["query"] for query in read_queries(DEMO / "queries.jsonl").queries[:QUERIES]]


@pytest.fixture(scope="session")
def written(queries):
    """`written(lm) -> records`: the pairs that a base writes."""

    def write(lm):
        return generate_pairs(
            lm,
            [{"query": query} for query in queries],
            [HELPFUL],
            prompt_form(lm.tokenizer),
            None,
            batch_size=64,
            seed=0,
            characteristic_tokens=16,
            answer_tokens=32,
        ).records

    return write


@pytest.fixture(scope="session")
def demo_records(demo_lm, written):
    return written(demo_lm)


@pytest.fixture(scope="session")
def tiny_contrast(tiny_lm):
    return PersonaContrast(tiny_lm, HELPFUL, prompt_form(tiny_lm.tokenizer), "good", 2)
