"""Near ties: a run within the tolerance flips there and nowhere else."""

from __future__ import annotations

import pytest
import torch

from alignez_bake.certificate.near_ties import WIDTH, RunnersUp, tied_choices
from alignez_bake.certificate.routing import Routing

TOLERANCE = 1e-2


def routing(scores, k):
    """Of one prompt, with the k largest scores [routers, tokens, experts] chosen."""
    return Routing((scores,), (scores.topk(k).indices.sort(dim=-1).values,), ())


def test_a_run_within_the_tolerance_chooses_others_only_where_a_tie_was_found():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4000, 8, generator=generator, dtype=torch.float64)
    (tied,) = tied_choices(routing(scores, 3), TOLERANCE)
    noise = torch.randn(scores.shape, generator=generator, dtype=torch.float64)
    noise *= TOLERANCE * scores.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    before, after = (routing(values, 3).chosen[0] for values in (scores, scores + noise))
    flipped = (before != after).any(dim=-1).any(dim=0)
    assert flipped.sum() > 40
    assert bool(tied[flipped].all())
    assert tied.double().mean() < 0.5


@pytest.mark.parametrize(("gap", "tied"), [(0.99, True), (1.01, False)])
def test_the_width_is_no_larger_than_it_must_be(gap, tied):
    """The worst change of that size, against the gap, closes a gap of just under the width, and no other."""
    scores = torch.tensor([[[1.0, 0.98, 3.0, -2.0]]], dtype=torch.float64)
    scores[..., 1] = scores[..., 0] - gap * WIDTH * TOLERANCE * scores.norm()
    (found,) = tied_choices(routing(scores, 2), TOLERANCE)
    assert bool(found) == tied
    change = torch.tensor([-1.0, 1.0, 0.0, 0.0], dtype=torch.float64) / WIDTH * TOLERANCE * scores.norm()
    assert (routing(scores + change, 2).chosen[0].tolist() != routing(scores, 2).chosen[0].tolist()) == tied


def test_one_tied_router_is_enough_and_counts_at_its_token_alone():
    scores = torch.tensor([[[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]], [[2.0, 1.0, 0.0], [1.0, 2.0, 1.9999]]])
    (found,) = tied_choices(routing(scores, 1), TOLERANCE)
    assert found.tolist() == [False, True]


def test_a_router_that_passes_over_a_larger_score_counts_as_tied():
    scores = torch.tensor([[[3.0, 2.0, 0.0]]])
    chosen = torch.tensor([[[1]]])
    (found,) = tied_choices(Routing((scores,), (chosen,), ()), TOLERANCE)
    assert found.tolist() == [True]


def test_runners_up():
    watcher = RunnersUp()
    scores = torch.tensor([[0.0, 4.0, 3.0], [1.0, -1.0, 0.5]])
    assert watcher(torch.zeros(2, 1), scores) is scores
    assert watcher.tokens[0].tolist() == [2, 2]
    assert torch.allclose(watcher.margins[0], torch.tensor([1 / 5, 0.5 / 1.5]))
