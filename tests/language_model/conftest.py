import pytest

from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder


@pytest.fixture(scope="session")
def tiny_lm(tiny_folder):
    """`tiny_lm(model_type, bias=None)`: a tiny model as the tool loads it, once a session. Never change it."""
    loaded = {}

    def load(model_type, bias=None):
        key = (model_type, bias)
        if key not in loaded:
            loaded[key] = load_language_model(open_model_folder(tiny_folder(model_type, bias)))
        return loaded[key]

    return load
