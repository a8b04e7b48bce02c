"""A small result of the demo model and its report, each made once a session."""

from __future__ import annotations

import pytest

import alignez_bake
from alignez_bake.evaluation import chat_client
from tests.commands.evaluate.evaluating import DEMO, FEW, QUERIES, evaluated


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Edits of ridge from few pairs, baked and as an adapter; queries; a file of neutral texts."""
    folder = tmp_path_factory.mktemp("made")
    for name, lines in (("queries.jsonl", 40), ("heldout.jsonl", QUERIES), ("neutral.txt", 20)):
        text = (DEMO / name).read_text(encoding="utf-8").splitlines()[:lines]
        (folder / name).write_text("\n".join(text), encoding="utf-8")
        (folder / f"few_{name}").write_text("\n".join(text[:FEW]), encoding="utf-8")
    base = DEMO / "base"
    alignez_bake.pairs(base, folder / "pairs.jsonl", queries=folder / "queries.jsonl", batch_size=80)
    alignez_bake.fit(base, folder / "pairs.jsonl", folder / "edits.safetensors", method="ridge")
    alignez_bake.bake(base, folder / "edits.safetensors", folder / "aligned")
    alignez_bake.bake(base, folder / "edits.safetensors", folder / "adapter", artefact="adapter")
    alignez_bake.bake(base, folder / "edits.safetensors", folder / "gguf", artefact="gguf")
    return folder


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Nobody waits for a server."""
    found = []
    monkeypatch.setattr(chat_client.time, "sleep", found.append)
    return found


@pytest.fixture(scope="session")
def by_rules(made):
    return evaluated(made, out=made / "report")
