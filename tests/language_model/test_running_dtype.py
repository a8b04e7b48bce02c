"""In which dtype a model runs: the stored one, unless a CPU has no arithmetic in it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignez_bake.language_model import running_dtype as module
from alignez_bake.language_model.loading import load_language_model, load_model
from alignez_bake.language_model.running_dtype import cpu_computes_in, running_dtype
from alignez_bake.model_folder import open_model_folder


@pytest.fixture
def stored(save_tiny, tmp_path):
    """`stored(dtype)`: an opened tiny llama in that dtype."""

    def stored(dtype):
        save_tiny("llama", tmp_path / "m", dtype=dtype)
        return open_model_folder(tmp_path / "m")

    return stored


@pytest.fixture
def narrow_cpu(monkeypatch):
    """A CPU without arithmetic of 16 bits."""
    monkeypatch.setattr(module, "cpu_computes_in", lambda _dtype: False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_run_as_they_are_where_the_cpu_computes_in_them(stored, dtype, monkeypatch):
    monkeypatch.setattr(module, "cpu_computes_in", lambda asked: asked == dtype)
    folder = stored(dtype)
    assert running_dtype(folder, "cpu") is None
    assert load_language_model(folder).model.dtype == dtype


@pytest.mark.usefixtures("narrow_cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_become_float32_where_it_does_not(stored, dtype):
    folder = stored(dtype)
    wide = load_language_model(folder).model
    assert wide.dtype == torch.float32
    as_stored = load_model(folder).model
    assert as_stored.dtype == dtype
    for name, parameter in as_stored.named_parameters():
        assert torch.equal(wide.get_parameter(name), parameter.float()), name
    assert load_language_model(folder, dtype=dtype).model.dtype == dtype


@pytest.mark.usefixtures("narrow_cpu")
def test_what_is_wider_or_elsewhere_stays(stored):
    assert running_dtype(stored(torch.float32), "cpu") is None
    assert running_dtype(stored(torch.bfloat16), "cuda") is None


@pytest.mark.usefixtures("narrow_cpu")
def test_weights_that_would_fill_the_memory_stay_as_they_are(stored, monkeypatch):
    folder = stored(torch.bfloat16)
    values = sum(parameter.numel() for parameter in load_model(folder).model.parameters())
    monkeypatch.setattr(module, "_memory_bytes", lambda: 8 * values)
    assert running_dtype(folder, "cpu") == torch.float32
    monkeypatch.setattr(module, "_memory_bytes", lambda: 8 * values - 1)
    assert running_dtype(folder, "cpu") is None


@pytest.mark.usefixtures("narrow_cpu")
def test_a_config_without_a_dtype_leaves_it_to_the_tensors(stored, tmp_path):
    stored(torch.bfloat16)
    file, weights = tmp_path / "m" / "config.json", tmp_path / "m" / "model.safetensors"
    config = json.loads(file.read_text())
    del config["dtype"]
    file.write_text(json.dumps(config))
    assert running_dtype(open_model_folder(tmp_path / "m"), "cpu") == torch.float32
    tensors = load_file(weights)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, weights, metadata={"format": "pt"})
    assert running_dtype(open_model_folder(tmp_path / "m"), "cpu") is None


def test_this_cpu_says_what_it_computes_in(monkeypatch):
    """The questions that are put to torch exist in this release; without oneDNN nothing is known."""
    kernels = torch.ops.mkldnn
    assert cpu_computes_in(torch.bfloat16) == kernels._is_mkldnn_bf16_supported()
    assert cpu_computes_in(torch.float16) == kernels._is_mkldnn_fp16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert cpu_computes_in(torch.float16)
