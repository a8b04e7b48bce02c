"""The certificate of a graph: right graphs pass, each kind of wrong one fails, and doing nothing is inconclusive."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import pytest
import torch

from alignez_bake.certificate import graph as module
from alignez_bake.edit_plan import EditPlan
from alignez_bake.language_model.loading import load_model
from alignez_bake.model_folder import open_model_folder
from tests.baking import plan_for, replace_tensors
from tests.certificate.graphs import (
    certified,
    changed,
    count_positions_over_padding,
    make,
    swap_layers_of_the_cache,
    with_noise,
)
from tests.inserted.saving import edit_at
from tests.tiny_models import MODEL_TYPES

POSITIONS = 64
"""Half of them are for greedy tokens: 32 of them, after prompts of at most 32."""

SMALL = {"gpt2": {"n_positions": POSITIONS}}


def saved(save_tiny, folder, model_type, **settings):
    overrides = SMALL.get(model_type, {"max_position_embeddings": POSITIONS})
    return save_tiny(model_type, folder / "base", overrides=overrides, **settings)


def inserted_plan(base):
    """A gate, and the last position of each call, so that what it gives depends on how the prompt was cut."""
    folder = open_model_folder(base)
    edits = (
        edit_at(folder, "attn_write", 0, gate="relu"),
        edit_at(folder, "mlp_write", 1, gate="tanh", positions="last", strength=-1.5),
    )
    return EditPlan(edits, base=folder.fingerprint)


@pytest.fixture(scope="module")
def llama(tmp_path_factory, save_tiny):
    folder = tmp_path_factory.mktemp("llama")
    base = saved(save_tiny, folder, "llama")
    return make(base, plan_for(base, ("attn_write", "mlp_write"), scale=0.3), folder)


@pytest.fixture(scope="module")
def passed(llama):
    """The certificate of the right graph."""
    return certified(llama)


@pytest.fixture(scope="module")
def unedited(tmp_path_factory, llama):
    """The graph of the base, made as the base of a bake whose edits do next to nothing."""
    return make(llama.base, llama.plan.scaled(1e-6), tmp_path_factory.mktemp("unedited"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, save_tiny):
    folder = tmp_path_factory.mktemp("gpt2")
    base = saved(save_tiny, folder, "gpt2")
    return make(base, inserted_plan(base), folder)


def test_a_right_graph_of_folded_edits(passed):
    assert passed.verdict == "passed", passed.reasons
    assert [(entry.batch_size, entry.cache) for entry in passed.comparisons] == [
        (1, "empty"), (1, "filled"), (4, "empty"), (4, "filled"),
    ]  # fmt: skip
    for entry in passed.comparisons:
        assert entry.moved > 100 * 1e-4
        assert 0 < entry.error_to_hooked_base < entry.bound_to_hooked_base == 1e-4
        assert 0 < entry.error_to_baked_model < entry.bound_to_baked_model == 1e-4
        assert (entry.prompts, entry.left_out) == (32 if entry.cache == "empty" else 8, 0)
    assert [entry.equal for entry in passed.greedy] == [8, 32, 8, 32]


def test_a_right_graph_of_inserted_edits(gpt2):
    certificate = certified(gpt2)
    assert certificate.verdict == "passed", certificate.reasons
    assert all(entry.moved > 100 * 1e-4 for entry in certificate.comparisons)


@pytest.mark.sweep
@pytest.mark.parametrize("edits", ["folded", "inserted"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_right_graphs_of_every_architecture(model_type, edits, tmp_path, save_tiny):
    base = saved(save_tiny, tmp_path, model_type)
    plan = plan_for(base, scale=0.3) if edits == "folded" else inserted_plan(base)
    certificate = certified(make(base, plan, tmp_path))
    assert certificate.verdict == "passed", certificate.reasons


def test_what_a_certificate_says(passed):
    figures = json.loads(json.dumps(passed.to_json(), allow_nan=False))
    assert (figures["level"], figures["verdict"], figures["dtype"]) == ("forward", "passed", "float32")
    assert figures["exact_graph"]["file"] == "model.onnx"
    assert figures["exact_graph"]["nodes"]["CPUExecutionProvider"] > 50
    assert (figures["prompts"]["shortest"], figures["prompts"]["longest"]) == (16, 32)
    assert figures["greedy"]["tokens"] == 32
    assert figures["quantised"] is None
    rows = dict(passed.main_figures())
    assert "bound 1.0e-04" in rows["logits, batch 4, filled cache"]
    assert rows["32 greedy tokens equal to the hooked base's"] == "batch 1: 100%, batch 4: 100%"
    assert rows["32 greedy tokens equal to the baked model's"] == "batch 1: 100%, batch 4: 100%"
    assert "nodes at CPUExecutionProvider" in rows["graph, float32"]


def failed_at(certificate):
    """Which ways of reading the prompts failed, after checking that the certificate did."""
    assert certificate.verdict == "failed"
    return {
        (entry.batch_size, entry.cache)
        for entry in certificate.comparisons
        if entry.error_to_hooked_base > entry.bound_to_hooked_base
    }


def test_a_graph_of_the_base_fails(llama, unedited):
    certificate = certified(llama, graph=unedited.graph)
    assert len(failed_at(certificate)) == 4
    text = " ".join(certificate.reasons)
    for part in (
        "batch 1, empty cache: the graph's logits differ from those of the hooked base by",
        "batch 4, filled cache: the graph's logits differ from those of the baked model by",
        "batch 1: the graph's greedy tokens differ from those of the hooked base",
        "batch 4: the graph's greedy tokens differ from those of the baked model",
    ):
        assert part in text


def test_another_strength_fails_against_the_hooked_base_alone(llama):
    certificate = certified(llama, plan=llama.plan.scaled(1.02))
    assert len(failed_at(certificate)) == 4
    assert all(entry.error_to_baked_model < 1e-4 for entry in certificate.comparisons)


def test_a_graph_of_another_model_than_the_baked_one_fails_against_that_alone(llama, unedited):
    certificate = certified(llama, baked=unedited.baked)
    assert failed_at(certificate) == set()
    assert all("the baked model" in reason for reason in certificate.reasons)


def test_edits_that_do_nothing_are_inconclusive(unedited):
    certificate = certified(unedited)
    assert certificate.verdict == "inconclusive"
    (reason,) = certificate.reasons
    assert "less than 100 tolerances" in reason


def test_layers_of_the_cache_in_the_wrong_order_fail_behind_a_cache(llama, tmp_path):
    graph = changed(llama.graph, tmp_path / "model.onnx", swap_layers_of_the_cache)
    certificate = certified(llama, graph=graph)
    assert failed_at(certificate) == {(1, "filled"), (4, "filled")}
    assert any("greedy tokens differ" in reason for reason in certificate.reasons)


def test_positions_counted_over_padding_fail_where_there_is_padding(gpt2, tmp_path):
    graph = changed(gpt2.graph, tmp_path / "model.onnx", count_positions_over_padding)
    certificate = certified(gpt2, graph=graph)
    assert failed_at(certificate) == {(4, "empty"), (4, "filled")}


def test_sixteen_bits(tmp_path, save_tiny, unedited):
    base = saved(save_tiny, tmp_path, "llama", dtype=torch.float16)
    made = make(base, plan_for(base, ("attn_write", "mlp_write"), scale=0.3), tmp_path)
    certificate = certified(made)
    assert certificate.verdict == "passed", certificate.reasons
    assert certificate.dtype == "float16"
    for entry in certificate.comparisons:
        assert 1e-4 < entry.error_to_hooked_base <= entry.bound_to_hooked_base < 1e-2
        assert entry.bound_to_baked_model is None
        assert entry.error_to_baked_model > 0
    assert len(failed_at(certified(made, graph=unedited.graph))) == 4, "the base is the same but for rounding"


@pytest.mark.parametrize(("noise", "verdict"), [(1e-3, "passed"), (1.0, "inconclusive")])
def test_quantised_weights_must_change_less_than_the_edit_does(noise, verdict, llama, tmp_path):
    graph = changed(llama.graph, tmp_path / "quantised.onnx", with_noise(noise))
    assert certified(llama, graph=graph).verdict == "failed", "by itself it is no exact graph"
    certificate = certified(llama, graph=graph, reference=llama.graph)
    assert certificate.verdict == verdict, certificate.reasons
    assert all(entry.error_to_hooked_base < 1e-4 for entry in certificate.comparisons)
    figures = json.loads(json.dumps(certificate.to_json(), allow_nan=False))
    assert (figures["exact_graph"]["file"], figures["quantised"]["graph"]["file"]) == ("model.onnx", "quantised.onnx")
    assert len(figures["quantised"]["comparisons"]) == 4
    for entry in figures["quantised"]["comparisons"]:
        assert entry["error_to_exact_graph"] > 1e-4
        assert (entry["error_to_exact_graph"] < entry["moved"]) == (verdict == "passed")
    assert all(("the edit drowns" in reason) for reason in certificate.reasons)
    assert 0 <= figures["quantised"]["greedy_equal_share_to_exact_graph"]["batch 4"] < 1
    names = [name for name, _ in certificate.main_figures()]
    assert "before quantisation: logits, batch 1, empty cache" in names
    assert "quantised graph: logits, batch 1, empty cache" in names


def test_a_wrong_graph_before_quantisation_fails(llama, unedited):
    assert certified(llama, reference=unedited.graph).verdict == "failed"


class ReachedError(Exception):
    """The graph would run now."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_more_than_one_base_at_a_time_and_none_when_the_graph_runs(dtype, llama, monkeypatch):
    loaded = []

    def load(*arguments, **settings):
        assert all(model() is None for model in loaded)
        result = load_model(*arguments, **settings)
        loaded.append(weakref.ref(result.model))
        return result

    def run(*_arguments):
        assert all(model() is None for model in loaded)
        raise ReachedError

    monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setattr(module, "graph_logits", run)
    baked = llama.baked
    if dtype == torch.float16:
        baked = load_model(open_model_folder(llama.base), dtype=dtype)
    with pytest.raises(ReachedError):
        certified(llama, baked=baked)
    assert len(loaded) == (2 if dtype == torch.float16 else 1)


@pytest.mark.sweep
def test_tied_experts_leave_too_few_prompts_and_are_no_failure(tmp_path, save_tiny):
    base = saved(save_tiny, tmp_path, "mixtral")
    gates = {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)}

    def tie(name, values):
        if name not in gates:
            return None
        values = values.copy()
        values[1] = values[0] * (1 + 1e-7)
        return values

    replace_tensors(base, tie)
    made = make(base, plan_for(base, ("attn_write", "mlp_write"), scale=0.3), tmp_path)
    certificate = certified(made)
    assert certificate.verdict == "inconclusive"
    assert all("near tie" in reason for reason in certificate.reasons)
    assert max(entry.left_out for entry in certificate.comparisons) > 16
    # Where nothing is tied, a graph of another strength fails as ever.
    other = replace(made.plan, edits=made.plan.edits[:1])
    assert certified(made, plan=other).verdict != "passed"
