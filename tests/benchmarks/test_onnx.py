"""The benchmark of graphs on a tiny random model: every line runs, and what is compared is the same function."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from alignez_bake.model_folder import open_model_folder
from benchmarks import onnx
from benchmarks.onnx_folder import BAKED, GENAI, HOOKS, OPTIMISED, OPTIMUM, memory, open_subject, write_models
from benchmarks.onnx_models import weight_bytes
from benchmarks.onnx_running import Rates, check_agreement, prompt
from benchmarks.onnx_tables import Found, cost_table, rate_table, ratio_text


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, "tiny", torch.float32)
    return folder


@pytest.mark.sweep
def test_it_measures_and_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx, "SUBJECTS", (HOOKS, OPTIMISED, OPTIMUM))  # the second is made of the plain graph
    arguments = ["--size", "tiny", "--rounds", "2", "--prefill", "7", "--decode", "3", "--batch", "1", "2"]
    onnx.main([*arguments, "--no-memory", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "onnx.json").read_text())
    assert list(result["subjects"]) == [HOOKS, OPTIMISED]
    for name, subject in result["subjects"].items():
        assert set(subject["rates"]) == {"1", "2"}
        assert all(len(rates["decode"]) == len(rates["prefill"]) == 2 for rates in subject["rates"].values())
        assert (subject["made"] is None) == (name == HOOKS)
    assert result["subjects"][OPTIMISED]["made"]["bytes"] > 0
    assert result["left_out"] == {OPTIMUM: "no --optimum-python"}
    assert f"Left out: {OPTIMUM}, no --optimum-python." in printed
    assert printed == (tmp_path / "onnx.md").read_text() + "\n"
    assert (tmp_path / "onnx.png").stat().st_size > 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["onnx.json", "onnx.md", "onnx.png"]


def test_hooks_and_baked_model_run_the_same_function_and_the_base_another(models):
    ids = prompt(768, 2, 9)
    subjects = {HOOKS: open_subject(HOOKS, models, "cpu", 16), BAKED: open_subject(BAKED, models, "cpu", 16)}
    apart = check_agreement(subjects, ids, 1e-3)
    assert apart[HOOKS] == 0
    assert 0 < apart[BAKED] <= 1e-3
    # As if nothing had been baked.
    (models / "unbaked").mkdir()
    (models / "unbaked" / "checkpoint").symlink_to(models / "base")
    with pytest.raises(SystemExit, match="not the logits of torch, hooks"):
        check_agreement({**subjects, BAKED: open_subject(BAKED, models / "unbaked", "cpu", 16)}, ids, 1e-3)


@pytest.mark.sweep
def test_memory_is_that_of_one_subject(models):
    needed = memory(BAKED, models, batch=1, prefill=8, decode=2)
    assert 0 < needed < 100 * weight_bytes(open_model_folder(models / "base"))


def test_a_device_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit, match="sees no GPU"):
        onnx.main(["--device", "cuda", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_ratios_are_of_rounds():
    assert ratio_text((2.0, 6.0, 4.0), (1.0, 2.0, 4.0)) == "2.00 (1.00 to 3.00)"


def test_tables_leave_open_what_was_not_measured():
    rates = {1: Rates((10.0,), (2.0,))}
    found = {HOOKS: Found(rates, None, {}), GENAI: Found({1: Rates((20.0,), (6.0,))}, None, {1: 300})}
    assert rate_table(found, 1).splitlines()[-1] == (
        "| onnxruntime-genai | 6.0 (6.0 to 6.0) | 3.00 (3.00 to 3.00) |  "
        "| 20.0 (20.0 to 20.0) | 2.00 (2.00 to 2.00) |  |"
    )
    assert cost_table(found, 200).splitlines()[-2:] == [
        "| torch, hooks |  |  |  |  |",
        "| onnxruntime-genai |  |  |  | 1.50 |",
    ]


def test_prompts_are_the_same_in_every_process():
    assert np.array_equal(prompt(100, 3, 4), prompt(100, 3, 4))
    assert not np.array_equal(prompt(100, 3, 4)[0], prompt(100, 3, 4)[1])
