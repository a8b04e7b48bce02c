"""One set of hooks for all fuzz tests."""

from __future__ import annotations

import pytest

from tests.fuzz.watching import Hooks


@pytest.fixture(scope="session")
def hooks():
    return Hooks()
