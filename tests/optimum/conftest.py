"""Tests that need optimum are skipped where it cannot be imported; `make optimum` runs them where it can."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDERS = Path(__file__).parents[2] / "out" / "optimum"
"""What `python -m tests.optimum.folders` has written, in the environment of transformers 5."""


@pytest.fixture(autouse=True)
def _needs_optimum() -> None:
    if find_spec("optimum") is None or find_spec("optimum.onnxruntime") is None:
        pytest.skip("optimum is not installed here: run `make optimum`")


@pytest.fixture
def written_by_5(request) -> Path:
    """The folder of the name that the test is parametrised with."""
    folder = FOLDERS / request.getfixturevalue("name")
    if not folder.is_dir():
        pytest.skip(f"{folder} is not written: run `make optimum`")
    return folder
