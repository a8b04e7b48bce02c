from types import SimpleNamespace

import numpy as np
import pytest

from alignez_bake.capture.statistics import Rows
from alignez_bake.errors import BadInputError
from alignez_bake.feasibility.layers import best_layer, held_out_half, layer_reports

QUERIES = [f"query {number}" for number in range(40)]
LAYERS = range(3)


def captured(speaking=None, *, broken=None):
    """A capture of noise, with a difference of the sides in one layer, and a value in place of another."""
    rng = np.random.default_rng(0)

    def capture(specs):
        rows = {}
        for spec in specs:
            values = rng.normal(size=(len(QUERIES), 20)) + 1.0
            if spec.site.layer == speaking:
                values += {"good": 2.0, "bad": -2.0}[spec.answer]
            if broken is not None and spec.site.layer == 1:
                values[:] = broken
            rows[spec] = Rows(values)
        return SimpleNamespace(rows=rows)

    return capture


def test_the_layer_that_speaks_is_the_best():
    reports = layer_reports(captured(speaking=2), LAYERS, QUERIES, seed=0)
    best = best_layer(reports)
    assert (best.layer, best.tokens, best.separability.held_out.successes) == (2, "last", 20)
    assert best.p_value == pytest.approx(6 * 0.5**20)
    assert best.shown
    silent, speaking = reports[0].figures["last"], reports[2].figures["last"]
    assert (silent.cosine, speaking.cosine) == (pytest.approx(1, abs=0.05), pytest.approx(-1, abs=0.05))
    # Means of about 3 and -1 in each of 20 places: 2 · 4 / (3 + 1) = 2.
    assert speaking.difference == pytest.approx(2, rel=0.1)
    assert silent.difference < 0.5


def test_where_no_layer_speaks_none_is_shown():
    assert not best_layer(layer_reports(captured(), LAYERS, QUERIES, seed=0)).shown


@pytest.mark.parametrize(
    ("broken", "message"),
    [(np.nan, "layer 1: activations of good answers are not finite"), (2.0, "layer 1: all 80 answers have the same")],
)
def test_activations_that_say_nothing(broken, message):
    with pytest.raises(BadInputError, match=message):
        layer_reports(captured(broken=broken), LAYERS, QUERIES, seed=0)


def test_pairs_of_one_query_are_on_one_side_of_the_split():
    queries = [f"query {number // 3}" for number in range(30)]
    halves = held_out_half(queries, seed=0)
    assert sum(halves) == 15
    assert all(len({halves[place] for place in range(first, first + 3)}) == 1 for first in range(0, 30, 3))
    assert held_out_half(queries, seed=1) != halves
    with pytest.raises(BadInputError, match="pairs of 2 queries"):
        held_out_half(["a", "b"], seed=0)
