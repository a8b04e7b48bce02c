"""The judgement of a graph alone, on made-up measurements; and how prompts are cut."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch

from alignez_bake.certificate.graph_figures import (
    GraphCertificate,
    GraphPlace,
    QuantisedComparison,
    QuantisedFigures,
)
from alignez_bake.certificate.graph_judge import (
    CaseMeasured,
    compare_case,
    compare_greedy,
    doubts,
    failures,
    quantisation_doubts,
)
from alignez_bake.certificate.graph_runs import Case, Differences, GreedyRun, differences, pieces
from alignez_bake.certificate.routing import Routing
from alignez_bake.runtime.providers import KINDS, Placement, Provider
from alignez_bake.runtime.session import OnnxModel

PROMPTS = 4
CASE = Case(4, "filled")


def errors(values):
    """Relative errors of four prompts of one norm; one value is that of all."""
    relative = torch.tensor(values if isinstance(values, list) else [values] * PROMPTS, dtype=torch.float64)
    return Differences(relative.square(), torch.ones(PROMPTS, dtype=torch.float64))


def measured(hooked=1e-6, baked=1e-6, *, moved=0.5, noise=None, tied=()):
    flags = torch.tensor([prompt in tied for prompt in range(PROMPTS)])
    noise = None if noise is None else errors(noise)
    return CaseMeasured(CASE, errors(hooked), errors(baked), errors(moved), noise, flags)


@pytest.mark.parametrize(
    ("changes", "wrong", "unsure"),
    [
        ({}, 0, 0),
        ({"hooked": 2e-4}, 1, 0),
        ({"baked": 2e-4}, 1, 0),
        ({"hooked": 2e-4, "baked": 2e-4}, 2, 0),
        ({"hooked": float("nan")}, 1, 0),
        ({"hooked": float("nan"), "tied": (0, 1, 2, 3)}, 1, 0),
        ({"hooked": [1e-3, 1e-6, 1e-6, 1e-6]}, 1, 0),
        ({"hooked": [1e-3, 1e-6, 1e-6, 1e-6], "tied": (0,)}, 0, 0),
        ({"baked": [1e-3, 1e-6, 1e-6, 1e-6], "tied": (0,)}, 0, 0),
        ({"hooked": [1e-3, 1e-6, 1e-6, 1e-6], "tied": (1, 2, 3)}, 1, 0),
        ({"hooked": [1e-3, 1e-3, 1e-6, 1e-6], "tied": (0, 1)}, 0, 0),
        ({"hooked": [1e-3, 1e-3, 1e-3, 1e-6], "tied": (0, 1, 2)}, 0, 1),
        ({"hooked": 1e-3, "tied": (0, 1, 2, 3)}, 0, 1),  # nothing is left
        ({"moved": 9e-3}, 0, 1),
        ({"moved": float("nan")}, 0, 0),  # more than the largest float
        # A flip of the base alone is no effect of the edit: where it is left out, it does not count as one.
        ({"hooked": [1e-3, 1e-6, 1e-6, 1e-6], "moved": [1.0, 1e-3, 1e-3, 1e-3], "tied": (0,)}, 0, 1),
    ],
)
def test_logits_in_fp32(changes, wrong, unsure):
    entry = compare_case(measured(**changes))
    assert (entry.bound_to_hooked_base, entry.bound_to_baked_model) == (1e-4, 1e-4)
    assert len(failures(entry)) == wrong
    assert len(doubts([entry], "float32")) == unsure
    json.dumps(entry._asdict(), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "wrong", "unsure"),
    [
        ({"hooked": 0.012}, 0, 0),  # within 1.25 times of what the hooks lose
        ({"hooked": 0.013}, 1, 0),
        ({"hooked": 0.01, "baked": 0.02}, 0, 0),  # reported, not required
        ({"hooked": [0.1, 0.01, 0.01, 0.01], "tied": (0,)}, 0, 0),
        ({"hooked": [0.1, 0.01, 0.01, 0.01], "tied": (1,)}, 1, 0),
        ({"moved": 0.009}, 0, 1),  # the dtype's noise hides the edit
        ({"noise": float("inf")}, 0, 1),
    ],
)
def test_logits_in_sixteen_bits(changes, wrong, unsure):
    entry = compare_case(measured(**{"hooked": 0.01, "noise": 0.01, **changes}))
    assert entry.bound_to_baked_model is None
    assert len(failures(entry)) == wrong
    assert len(doubts([entry], "float16")) == unsure
    json.dumps(entry._asdict(), allow_nan=False)


def test_what_is_left_out_is_counted_and_in_no_error():
    entry = compare_case(measured([1e-3, 1e-6, 1e-6, 1e-6], moved=[9.0, 0.5, 0.5, 0.5], tied=(0, 1)))
    assert entry.left_out == 1, "the other tied prompt agrees"
    assert entry.error_to_hooked_base == pytest.approx(1e-6)
    assert entry.moved == pytest.approx(0.5)


def greedy(*, first=None, token=9, runner_up=9, margin=1e-5, tied_at=None, dtype=torch.float32):
    """One prompt of 3 tokens and 4 new ones, whose token `first` is another one, and all after it."""
    expected = [1, 2, 3, 4]
    found = expected if first is None else [*expected[:first], token, *[7] * (3 - first)]
    runners_up = torch.full((1, 4), runner_up)
    routing = None
    if tied_at is not None:
        scores = torch.tensor([[[2.0, 1.0]] * 6])  # 3 + 4 tokens, of which the last is never read
        scores[0, tied_at, 1] = 2.0 - 1e-5
        routing = Routing((scores,), (torch.zeros(1, 6, 1, dtype=torch.long),), ())
    run = GreedyRun([expected], runners_up, torch.full((1, 4), margin), routing)
    return compare_greedy(4, "the hooked base", [found], run, dtype)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, (1, 0, 0)),
        ({"first": 2}, (0, 1, 0)),
        ({"first": 2, "margin": 1.4e-4}, (0, 1, 0)),
        ({"first": 2, "margin": 1.5e-4}, (0, 0, 0)),
        ({"first": 2, "runner_up": 8}, (0, 0, 0)),  # neither the likeliest nor the second
        ({"first": 0, "margin": 0.1, "tied_at": 2}, (0, 0, 1)),  # the prompt's last token gave the first new one
        ({"first": 0, "margin": 0.1, "tied_at": 3}, (0, 0, 0)),
        ({"first": 3, "margin": 0.1, "tied_at": 5}, (0, 0, 1)),
        ({"first": 2, "margin": 0.1, "tied_at": 5}, (0, 0, 0)),  # behind the first that differs
        ({"tied_at": 0}, (1, 0, 0)),
    ],
)
def test_greedy_tokens(changes, counts):
    entry = greedy(**changes)
    assert (entry.equal, entry.tied_tokens, entry.tied_experts) == counts
    assert bool(entry.failures()) == (counts == (0, 0, 0))
    assert bool(entry.doubts()) == (sum(counts[1:]) > 0)


def test_sixteen_bits_have_wider_ties_of_experts():
    assert greedy(first=0, margin=0.1, tied_at=1).tied_experts == 1
    wide = {"first": 0, "margin": 0.1, "tied_at": None}
    assert greedy(**wide).tied_experts == 0
    scores = torch.tensor([[[2.0, 1.985]] * 6])
    run = GreedyRun(
        [[1, 2, 3, 4]],
        torch.full((1, 4), 8),
        torch.ones(1, 4),
        Routing((scores,), (torch.zeros(1, 6, 1, dtype=torch.long),), ()),
    )
    found = [[5, 5, 5, 5]]
    assert compare_greedy(1, "the baked model", found, run, torch.float32).tied_experts == 0
    assert compare_greedy(1, "the baked model", found, run, torch.float16).tied_experts == 1


@pytest.mark.parametrize(("error", "drowns"), [(0.1, False), (0.5, True), (0.6, True), (sys.float_info.max, True)])
def test_quantisation_beside_the_edit(error, drowns):
    reasons = quantisation_doubts([QuantisedComparison(1, "empty", error, 0.5)])
    assert bool(reasons) == drowns


def test_differences_are_prompt_by_prompt():
    found, expected = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])], [torch.tensor([3.0, 5.0]), torch.tensor([2.0])]
    result = differences(found, expected)
    assert torch.allclose(result.of_prompts(), torch.tensor([(1 / 34) ** 0.5, 0.5], dtype=torch.float64))
    assert result.relative(torch.tensor([True, True])) == pytest.approx((2 / 38) ** 0.5)
    assert result.relative(torch.tensor([False, True])) == pytest.approx(0.5)
    assert result.relative(torch.tensor([False, False])) == 0.0


@pytest.mark.parametrize(
    ("shortest", "columns", "ends"),
    [
        (16, 27, [19, 23, 24, 25, 26, 27]),
        (128, 128, [64, 124, 125, 126, 127, 128]),
        (4, 9, [7, 8, 9]),
        (2, 2, [1, 2]),
        (1, 3, [3]),
    ],
)
def test_prompts_are_cut_where_every_row_has_begun(shortest, columns, ends):
    found = pieces(shortest, columns, "filled")
    assert [piece.stop for piece in found] == ends
    assert [piece.start for piece in found] == [0, *ends[:-1]]
    assert found[0].stop > columns - shortest
    assert pieces(shortest, columns, "empty") == [slice(0, columns)]


def test_where_a_graph_ran(tmp_path):
    provider = Provider(KINDS["cuda"], 0)
    nodes = {"CUDAExecutionProvider": 200, "CPUExecutionProvider": 12}
    model = OnnxModel(tmp_path / "model.onnx", None, None, provider, Placement(nodes, {"Shape": 12}))
    place = GraphPlace.of(model)
    assert place == ("model.onnx", "CUDAExecutionProvider", nodes)
    assert place.shown() == "200 nodes at CUDAExecutionProvider, 12 nodes at CPUExecutionProvider"
    unknown = GraphPlace.of(dataclasses.replace(model, placement=None))
    assert unknown.nodes is None
    assert "unknown" in unknown.shown()


def test_ties_have_rows_of_their_own():
    place = GraphPlace("model.onnx", "CPUExecutionProvider", {"CPUExecutionProvider": 5})
    comparison = compare_case(measured([1e-3, 1e-6, 1e-6, 1e-6], tied=(0,)))
    quantised = QuantisedFigures(place, (QuantisedComparison(4, "filled", 0.1, 0.5),), {4: 0.75})
    certificate = GraphCertificate(
        "passed", (), "float32", place, {}, (comparison,), (greedy(first=2),), 4, quantised
    )  # fmt: skip
    rows = dict(certificate.main_figures())
    assert rows["before quantisation: left out after a near tie of experts, batch 4, filled cache"] == "1 of 4 prompts"
    name = "before quantisation: tokens differ from the hooked base's after a near tie"
    assert rows[name] == "batch 4: 1 of 1 prompts"
    assert rows["quantised graph: 4 greedy tokens equal to the graph's before"] == "batch 4: 75%"
