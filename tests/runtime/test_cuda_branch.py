"""What the runner does with a GPU, against a stand-in that has memory of its own: none of it ran on a GPU here."""

from __future__ import annotations

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import generate, open_session
from alignez_bake.runtime.decoder import Decoder
from alignez_bake.runtime.text import open_folder
from tests.runtime import cuda_stand_in
from tests.runtime.graphs import LAYERS, causal_model, reference_greedy, saved
from tests.runtime.test_generate import CONTEXTS, NEW, fed
from tests.runtime.tokenizers_made import byte_level, save_tokenizer

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
CACHE = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]


@pytest.fixture
def graph(tmp_path):
    return saved(causal_model(), tmp_path)


@pytest.mark.parametrize(
    ("names", "started"),
    [
        (["cuda:2"], (CUDA, CPU)),
        (["cuda:2", "cpu"], (CUDA, CPU)),
        (["tensorrt:2", "cuda:2", "cpu"], (TENSORRT, CUDA, CPU)),
    ],
)
def test_the_cache_stays_on_the_gpu_that_was_asked_for(graph, monkeypatch, names, started):
    cuda_stand_in.install(monkeypatch, started=started)
    model = open_session(graph, names)
    answers = generate(model, CONTEXTS, max_new_tokens=NEW)
    assert answers == [reference_greedy(context, NEW) for context in CONTEXTS]
    assert len(model.session.bindings) == NEW
    for binding in model.session.bindings:
        tokens = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), ("cpu", 0))
        assert binding.inputs == tokens | {f"past_key_values.{name}": ("cuda", 2) for name in CACHE}
        assert binding.outputs == {"logits": ("cpu", 0)} | {f"present.{name}": ("cuda", 2) for name in CACHE}


def test_the_stand_in_fails_where_a_gpu_would():
    value = cuda_stand_in.DeviceValue.ortvalue_from_shape_and_type([1], 1, "cuda", 0)
    with pytest.raises(AssertionError, match="the host read memory of the GPU"):
        value.data_ptr()


def test_a_cache_that_comes_back_on_the_host_is_refused(graph, monkeypatch):
    """Every step would copy it twice, and nothing but the time would tell."""
    cuda_stand_in.install(monkeypatch, lands={"present.1.value": ("cpu", 0)})
    decoder = Decoder(open_session(graph, ["cuda"]), 1)
    with pytest.raises(BadInputError, match=r"present\.1\.value lies on cpu, and the cache of CUDA.* belongs on cuda"):
        decoder.step(fed([[3]]))


def test_logits_that_stay_on_the_gpu_are_refused_unread(graph, monkeypatch):
    cuda_stand_in.install(monkeypatch, lands={"logits": ("cuda", 0)})
    decoder = Decoder(open_session(graph, ["cuda"]), 1)
    with pytest.raises(BadInputError, match="logits lie on cuda and were bound to the host"):
        decoder.step(fed([[3]]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_in_half_precision_stays_on_the_gpu(tmp_path, monkeypatch, dtype):
    cuda_stand_in.install(monkeypatch)
    model = open_session(saved(causal_model(cache_dtype=dtype, logits_dtype=dtype), tmp_path), ["cuda:1"])
    decoder = Decoder(model, 1)
    for at, token in enumerate([3, 1, 4]):
        assert decoder.step(fed([[token]], at)).shape == (1, 17)
    assert {value.device for value in decoder._cache} == {("cuda", 1)}
    assert {value.element_type() for value in decoder._cache} == {10 if dtype == "float16" else 16}


def test_text_runs_through_the_same_branch(tmp_path, monkeypatch):
    core = byte_level()
    folder = save_tokenizer(core, tmp_path, {"bos_token": "<s>", "eos_token": "</s>"})
    saved(causal_model(vocabulary=core.get_vocab_size()), folder)
    expected = open_folder(folder, ["cpu"]).answer(["the spout", "the"], max_new_tokens=8)
    cuda_stand_in.install(monkeypatch)
    model = open_folder(folder, ["cuda", "cpu"])
    assert model.answer(["the spout", "the"], max_new_tokens=8) == expected
    assert "".join(model.stream_text("the", max_new_tokens=8)) == expected[1]
    assert {place for binding in model.graph.session.bindings for place in binding.outputs.values()} == {
        ("cpu", 0),
        ("cuda", 0),
    }
