"""A property, for a few examples in every run and for many in a sweep; and what holds of every reader of files."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from alignez_bake.errors import BadInputError
from tests.fuzz.agreement import assert_names, assert_short

SHORT = 200
LONG = 10_000  # of each property

SHORT_AND_LONG = pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=pytest.mark.sweep)])


def hold_for_each(strategy, check, examples):
    """Run `check` on examples of a strategy: the same ones in every short run, others in every long one."""
    short = examples == SHORT

    def judge(example):
        check(example)

    settings(
        max_examples=examples,
        derandomize=short,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(judge))()


def sound_ones_pass(strategy, check, examples):
    """Run `check` on the bytes of `Made` files: those to which nothing was done are accepted."""

    def judge(made):
        assert check(made.data) or not made.sound

    hold_for_each(strategy, judge, examples)


def read_or_refused(read, hooks, place, *, size, allowed, short=True):
    """What a reader gives; None where it refuses, which it does with our own error and no other.

    Args:
        read: the call.
        hooks: the fixture.
        place: that the error must name; "" where it names something within.
        size: bytes of the files, which bound the memory that it takes.
        allowed: files and folders that it may open.
        short: whether the error is not as long as a file would have it.
    """
    try:
        with hooks.watching() as watch:
            return read()
    except BadInputError as error:
        assert_names(error, place)
        if short:
            assert_short(error, place)
        return None
    finally:
        watch.check(size, allowed)
