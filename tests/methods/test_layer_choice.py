"""How many layers stand apart, on figures made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.methods.layer_choice import largest_scores, smallest_losses
from alignez_bake.site import Site

SITES = tuple(Site("mlp_write", layer) for layer in range(6))


def by_site(figures: list[float]) -> dict[Site, float]:
    return dict(zip(SITES, figures, strict=False))


def layers(sites: frozenset[Site]) -> set[int | None]:
    return {site.layer for site in sites}


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        # Running means 0.01, 0.015, 0.02, 0.065, 0.094: the fourth mean is the one that jumps.
        ([0.03, 0.20, 0.01, 0.21, 0.02], {0, 2, 4}),
        # The steps between neighbours grow (0.02, 0.03, 0.04, 0.05); the running mean's jumps are 0.010, 0.013, 0.017,
        # 0.020: the last one counts.
        ([0.00, 0.02, 0.05, 0.09, 0.14], {0, 1, 2, 3}),
        # The largest step between neighbours is the last (0.050), but the first (0.045) moves the running mean more.
        ([0.000, 0.045, 0.045, 0.045, 0.095], {0}),
        ([0.1, 0.1, 0.1], {0, 1, 2}),
        ([0.1], {0}),
        ([0.2, 0.1], {1}),
    ],
)
def test_auto_takes_the_losses_up_to_the_largest_jump_of_their_running_mean(losses: list[float], chosen: set) -> None:
    choice = smallest_losses(by_site(losses), "auto")
    assert layers(choice.sites) == chosen
    assert "largest jump of the running mean" in choice.left_out


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=6, unique=True))
def test_the_jumps_are_those_of_the_running_mean(losses: list[float]) -> None:
    ranked = np.sort(losses)
    means = [ranked[: count + 1].mean() for count in range(len(ranked))]
    chosen = len(smallest_losses(by_site(losses), "auto").sites)
    jumps = np.diff(means)
    assert jumps[chosen - 1] >= jumps.max() - 1e-12


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [([0.5, 0.1, 0.6, 0.05], {0, 2}), ([0.9, 0.6, 0.5, 0.45], {0}), ([0.3, 0.3], {0, 1}), ([-0.1], {0})],
)
def test_auto_takes_the_scores_above_the_largest_drop(scores: list[float], chosen: set) -> None:
    choice = largest_scores(by_site(scores), "auto")
    assert layers(choice.sites) == chosen
    assert "largest drop" in choice.left_out


def test_a_number_takes_the_best_and_of_equal_ones_the_earlier() -> None:
    figures = by_site([0.2, 0.5, 0.5, 0.1])
    for count, chosen in ((1, {1}), (2, {1, 2}), (3, {0, 1, 2})):
        assert layers(largest_scores(figures, count).sites) == chosen
    negated = {site: -figure for site, figure in figures.items()}
    assert layers(smallest_losses(negated, 1).sites) == {1}
    assert layers(smallest_losses(figures, 2).sites) == {0, 3}
    for count in (None, 4, 9):
        assert largest_scores(figures, count).sites == smallest_losses(figures, count).sites == set(figures)
