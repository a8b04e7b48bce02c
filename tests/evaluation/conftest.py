import pytest

from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.prompts.prompt_form import prompt_form


@pytest.fixture(scope="session")
def lm(tiny_folder):
    return load_language_model(open_model_folder(tiny_folder("llama")))


@pytest.fixture(scope="session")
def other_lm(save_tiny, tmp_path_factory):
    return load_language_model(open_model_folder(save_tiny("llama", tmp_path_factory.mktemp("other"), seed=1)))


@pytest.fixture(scope="session")
def form(lm):
    return prompt_form(lm.tokenizer)
