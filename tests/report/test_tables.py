"""What tables and cards show of a certificate is what it says itself, or, where it says nothing, what all have."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from alignez_bake.certificate.graph_figures import GraphCertificate, GraphComparison, GraphGreedy, GraphPlace
from alignez_bake.certificate.tensors import TensorsCertificate
from alignez_bake.certificate.verdict import main_figures, tensors_json
from alignez_bake.lowering.fold import Delivery
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.model_card import model_card
from alignez_bake.report.tables import certificate_table
from tests.baking import lowered, plan_for

GRAPH = GraphCertificate(
    "failed",
    ("it differs",),
    "float32",
    GraphPlace("model.onnx", "CPUExecutionProvider", {"CPUExecutionProvider": 212}),
    {"count": 32},
    (GraphComparison(4, "filled", 32, 0, 2e-4, 1e-4, 3e-7, 1e-4, 0.25),),
    (GraphGreedy(4, "the hooked base", 32, 16, 0, 0),),
    64,
)
TENSORS = TensorsCertificate("passed", (), (Delivery("w", 0.99994, 0.01, 0.1),), untouched=7, added=3, dtype=None)


@dataclass(frozen=True)
class Foreign:
    """A certificate of an exporter that somebody else wrote."""

    level: str
    verdict: str = "passed"
    reasons: tuple[str, ...] = ()
    figures: dict = field(default_factory=dict)

    def to_json(self):
        return self.figures


def rows(level):
    columns = certificate_table([level]).columns
    return list(zip(*([str(cell) for cell in column.cells] for column in columns), strict=True))


def test_a_graph():
    assert rows(GRAPH) == [
        ("forward", "verdict", "failed"),
        ("forward", "graph, float32", "212 nodes at CPUExecutionProvider"),
        (
            "forward",
            "logits, batch 4, filled cache",
            (
                "error 2.0e-04 to the hooked base (bound 1.0e-04), 3.0e-07 to the baked model (bound 1.0e-04), "
                "edit moves 2.5e-01"
            ),
        ),
        ("forward", "64 greedy tokens equal to the hooked base's", "batch 4: 50%"),
        ("forward", "reason", "it differs"),
    ]


def test_tensors():
    assert rows(TENSORS) == [
        ("tensors", "verdict", "passed"),
        ("tensors", "edited tensors = formula", "1"),
        ("tensors", "other tensors = base", "7"),
        ("tensors", "inserted parameters = edits", "3"),
        ("tensors", "lowest delivered share", "0.9999"),
    ]


def test_what_says_nothing_of_itself_shows_what_all_have():
    tensors = Foreign("tensors")
    figures = tensors_json(tensors, edited=2, untouched=0, lowest_delivered_share=None)
    assert rows(Foreign("tensors", figures=figures))[1:] == [
        ("tensors", "edited tensors = formula", "2"),
        ("tensors", "other tensors = base", "0"),
        ("tensors", "lowest delivered share", "none changed"),
    ]
    figures = {"level": "forward", "verdict": "passed", "largest_error": 1e-7, "device": "cpu", "sites": [1, 2]}
    assert rows(Foreign("forward", figures=figures))[1:] == [
        ("forward", "largest error", "1e-07"),
        ("forward", "device", "cpu"),
    ]


@pytest.mark.parametrize("level", [GRAPH, TENSORS], ids=["graph", "tensors"])
def test_the_card_shows_the_same(level, tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    text = model_card("aligned", base, lowered(base, plan_for(base)), [level])
    assert main_figures(level)
    for name, value in [("verdict", level.verdict), *main_figures(level)]:
        assert f"| {level.level} | {name} | {value} |" in text
