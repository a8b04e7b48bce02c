"""A property, for a few examples in every run and for many in a sweep."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

SHORT = 200
LONG = 10_000  # of each property

SHORT_AND_LONG = pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=pytest.mark.sweep)])


def hold_for_each(strategy, check, examples):
    """Run `check` on examples of a strategy: the same ones in every short run, others in every long one."""
    short = examples == SHORT
    return settings(
        max_examples=examples,
        derandomize=short,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(check))()
