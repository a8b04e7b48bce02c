import pytest

from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.prompts.objective import Objective
from alignez_bake.prompts.prompt_form import prompt_form


@pytest.fixture(scope="session")
def lm(tiny_folder):
    return load_language_model(open_model_folder(tiny_folder("llama")))


@pytest.fixture(scope="session")
def form(lm):
    return prompt_form(lm.tokenizer)


@pytest.fixture(scope="session")
def objectives():
    return [Objective("helpful", "helpful", "useless"), Objective("humor", "humorous", "dull and boring")]


@pytest.fixture(scope="session")
def queries():
    return [{"query": f"How do I clean copper kettle {number}?", "number": number} for number in range(5)]
