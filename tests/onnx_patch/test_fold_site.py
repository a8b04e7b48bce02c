"""Weights that are folded some rows at a time are the same weights, and their delivered shares the same figures."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.edit_plan import EditPlan
from alignez_bake.low_rank import low_rank
from alignez_bake.lowering.fold import FoldedTensor, delivery
from alignez_bake.onnx_patch import fold_site
from alignez_bake.onnx_patch.base_graph import open_base_graph
from alignez_bake.onnx_patch.decisions import site_patches
from alignez_bake.onnx_patch.delivered import DeliverySums
from alignez_bake.onnx_patch.fold_site import folded_site
from alignez_bake.site import Site
from tests.onnx_patch.graphs import edit_at

# The first is read as [d_in, d_out], the second as [d_out, d_in], and of the third half of the rows are the site's.
CASES = [("gpt2", None, "mlp_write"), ("opt", True, "mlp_write"), ("phi3", None, "mlp_gate")]


@pytest.fixture(params=CASES, ids=[case[0] for case in CASES])
def at_site(request, graph_folder, tiny_folder):
    """A graph, and a site of it whose edits read output and input, in two groups, one after the other."""
    model_type, bias, kind = request.param
    edits = tuple(
        edit_at(
            tiny_folder(model_type, bias), Site(kind, 1), seed=seed, reads=reads, objective=objective, constant=True
        )
        for seed, (reads, objective) in enumerate([("output", "a"), ("input", "a"), ("output", "a"), ("input", "b")])
    )
    graph = open_base_graph(graph_folder("dynamo", model_type, bias))
    (patch,) = site_patches(graph, EditPlan(edits, {"a": 0.6, "b": -1.2}), require_fold=True)
    return graph, patch


def test_blocks_are_the_whole(at_site, monkeypatch):
    graph, patch = at_site
    monkeypatch.setattr(fold_site, "_BLOCK", 5 * 32)
    monkeypatch.setattr(fold_site, "_COLUMNS", 5 * 32)
    graph_map, rows = patch.graph_map, patch.graph_map.rows
    weight = graph_map.oriented(graph.tensors.read(graph_map.weight)).astype(np.float64)
    bias = np.zeros(graph_map.fused) if graph_map.bias is None else graph.tensors.read(graph_map.bias)
    change = low_rank(patch.groups, weight[rows], bias[rows])
    expected_weight, expected_bias = weight.copy(), bias.astype(np.float64)
    expected_weight[rows] += change.b_matrix @ change.a_matrix
    expected_bias[rows] += change.delta_bias

    folded = folded_site(graph, patch)
    blocks = list(folded.weight.blocks())
    assert len(blocks) > 5
    found = np.concatenate([block.exact for _, block in blocks])
    found = found.T if graph_map.transposed else found
    np.testing.assert_allclose(found, expected_weight, rtol=0, atol=1e-13 * np.abs(expected_weight).max())
    np.testing.assert_allclose(folded.bias.exact, expected_bias, rtol=0, atol=1e-13 * np.abs(expected_bias).max())
    np.testing.assert_array_equal(folded.weight.rounded("F32"), np.concatenate([b.rounded("F32") for _, b in blocks]))


def test_delivered_shares_are_those_of_the_whole(at_site, monkeypatch):
    graph, patch = at_site
    monkeypatch.setattr(fold_site, "_BLOCK", 5 * 32)
    weight = folded_site(graph, patch).weight
    blocks = [block for _, block in weight.blocks()]
    stored = weight.rounded("BF16")
    sums = DeliverySums(weight)
    for part, block in weight.blocks():
        sums.add(block, stored[part])
    whole = FoldedTensor(
        weight.name, *(np.concatenate([getattr(b, side) for b in blocks]) for side in ("base", "exact"))
    )
    expected, found = delivery(whole, stored), sums.result()
    assert found.name == expected.name
    for figure in ("share", "residual", "relative_change"):
        assert getattr(found, figure) == pytest.approx(getattr(expected, figure), rel=1e-9)
    assert found.residual > 1e-4


def test_an_edit_that_changes_no_weight_has_no_share(graph_folder, tiny_folder):
    plan = EditPlan((edit_at(tiny_folder("gpt2"), Site("mlp_write", 1), constant=True),), {}).scaled(0.0)
    graph = open_base_graph(graph_folder("dynamo", "gpt2"))
    (patch,) = site_patches(graph, plan, require_fold=True)
    weight = folded_site(graph, patch).weight
    sums = DeliverySums(weight)
    for part, block in weight.blocks():
        sums.add(block, weight.base[part])
    assert (sums.result().share, sums.result().relative_change) == (None, 0.0)
