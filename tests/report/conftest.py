"""The whole way on a tiny model, once for all tests of its page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from alignez_bake.commands.align import align

if TYPE_CHECKING:
    from pathlib import Path

QUERIES = [f"pot {number}?" for number in range(12)]


@pytest.fixture(scope="session")
def reported(tmp_path_factory, save_tiny) -> Path:
    """A folder with `base` and `aligned`, which has its page. Never change it."""
    folder = tmp_path_factory.mktemp("reported")
    base = save_tiny("llama", folder / "base", overrides={"max_position_embeddings": 96})
    (folder / "queries.txt").write_text("\n".join(QUERIES))
    align(
        base,
        folder / "aligned",
        queries=folder / "queries.txt",
        prompt_template="{query}",
        method="ridge",
        save_pairs=True,
    )
    return folder
