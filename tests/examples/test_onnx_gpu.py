"""The deployment that users copy, run as they run it, against transformers' own generation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_tiny, tiny_model, tiny_tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "onnx_gpu.py"
PROMPTS = ["Human: How do I clean a copper kettle?\nAssistant:", "You are a helpful 👩"]
CHAT = "{{ bos_token }}{% for m in messages %}Human: {{ m.content }}\n{% endfor %}Assistant:"
NEW = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory, traced):
    """What an export leaves: the graph, the configs, the tokenizer."""
    path = save_tiny("llama", tmp_path_factory.mktemp("llama"), tokenizer=tiny_tokenizer(chat_template=CHAT))
    (path / "model.safetensors").unlink()
    shutil.copyfile(traced("llama", "base").path, path / "model.onnx")
    return path


def expected(prompt: str) -> str:
    """The text of transformers' greedy tokens."""
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        whole = tiny_model("llama", bias=False).generate(ids, max_new_tokens=NEW, do_sample=False)
    return tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


def run(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, folder, f"--max-new-tokens={NEW}", *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, encoding="utf-8")


def test_the_answers_are_those_of_transformers(folder):
    done = run(folder, "--provider=cpu", *(f"--prompt={prompt}" for prompt in PROMPTS))
    assert done.returncode == 0, done.stderr
    answers = [expected(prompt) for prompt in PROMPTS]
    assert answers[0] != answers[1]
    assert done.stdout == "".join(f"{answer}\n" for answer in answers)


def test_a_stream_prints_the_same(folder):
    done = run(folder, "--provider=cpu", f"--prompt={PROMPTS[0]}", "--stream")
    assert done.stdout == expected(PROMPTS[0]) + "\n", done.stderr


def test_a_chat_goes_through_the_template(folder):
    done = run(folder, "--provider=cpu", "--prompt=How do I clean a copper kettle?", "--chat")
    assert done.stdout == expected(PROMPTS[0]) + "\n", done.stderr


def test_samples_follow_their_seed(folder):
    drawn = [
        run(folder, "--provider=cpu", f"--prompt={PROMPTS[0]}", "--temperature=2", "--top-p=0.9", f"--seed={seed}")
        for seed in (1, 1, 2)
    ]
    assert drawn[0].stdout == drawn[1].stdout, drawn[0].stderr
    assert drawn[0].stdout != drawn[2].stdout


def test_it_says_where_nodes_run_and_how_fast(folder):
    said = run(folder, "--provider=cpu", f"--prompt={PROMPTS[0]}").stderr.splitlines()
    assert re.fullmatch(r"placement: \d+ nodes at CPUExecutionProvider", said[0])
    assert re.fullmatch(r"prompt: \d+ tokens in \d+\.\d{3} s", said[1])
    assert re.fullmatch(rf"decode: {NEW - 1} tokens, \d+\.\d tokens/s", said[2])
    assert len(said) == 3


@pytest.mark.parametrize("arguments", [(), ("--strict",)])
def test_a_machine_without_cuda_says_so_and_runs_nothing(folder, arguments):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    done = run(folder, f"--prompt={PROMPTS[0]}", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: provider 'cuda' is not there: .*\n", done.stderr)
    assert "alignez-bake[gpu]" in done.stderr


def test_two_prompts_cannot_be_streamed(folder):
    done = run(folder, "--provider=cpu", "--prompt=a", "--prompt=b", "--stream")
    assert done.returncode == 2
    assert "give one --prompt" in done.stderr
