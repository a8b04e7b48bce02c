"""The runner needs numpy and ONNX Runtime, and says so where the latter is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runtime.graphs import causal_model, saved
from tests.runtime.tokenizers_made import byte_level, save_tokenizer

RUN = """
import sys
from pathlib import Path
from alignez_bake.runtime import Sampling, generate, open_session
model = open_session(Path(sys.argv[1]), ["cpu"])
assert len(generate(model, [[1, 2], [3]], max_new_tokens=4, sampling=Sampling())[0]) == 4
"""
TEXT = """
import sys
from pathlib import Path
from alignez_bake.runtime.text import open_folder
model = open_folder(Path(sys.argv[1]), ["cpu"])
assert model.answer(["the spout", [{"role": "user", "content": "the kettle"}]], max_new_tokens=4)
assert list(model.stream_text("the spout", max_new_tokens=40))
"""
LOADED = "\nprint('MODULES', *sorted(name for name in sys.modules if '.' not in name))"
MISSING = """
import sys
from pathlib import Path
sys.modules["onnxruntime"] = None
from alignez_bake.errors import BadInputError
from alignez_bake.runtime import open_session
try:
    open_session(Path(sys.argv[1]), ["cpu"])
except BadInputError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return saved(causal_model(), tmp_path_factory.mktemp("graph"))


def output(code: str, graph) -> str:
    done = subprocess.run([sys.executable, "-c", code, graph], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_neither_torch_nor_transformers_nor_onnx_is_imported(graph):
    loaded = set(output(RUN + LOADED, graph).rsplit("MODULES", 1)[1].split())
    assert {"numpy", "onnxruntime"} <= loaded
    unwanted = {"torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "onnx", "ml_dtypes", "typer"}
    assert not loaded & unwanted


def test_text_needs_tokenizers_and_jinja2_and_no_more(tmp_path):
    core = byte_level()
    folder = save_tokenizer(core, tmp_path, {"bos_token": "<s>", "chat_template": "{{ messages[0].content }}"})
    saved(causal_model(vocabulary=core.get_vocab_size()), folder)
    loaded = set(output(TEXT + LOADED, folder).rsplit("MODULES", 1)[1].split())
    assert {"numpy", "onnxruntime", "tokenizers", "jinja2"} <= loaded
    assert not loaded & {"torch", "transformers", "huggingface_hub", "safetensors", "onnx", "typer"}


def test_importing_it_does_not_import_onnx_runtime(graph):
    loaded = set(output("import sys, alignez_bake.runtime" + LOADED, graph).rsplit("MODULES", 1)[1].split())
    assert "onnxruntime" not in loaded


def test_a_missing_onnx_runtime_names_the_extras(graph):
    said = output(MISSING, graph)
    assert "pip install 'alignez-bake[cpu]', or 'alignez-bake[gpu]' for CUDA" in said
