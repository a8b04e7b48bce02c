"""A world with two random models for its twins: nothing is learned from it, but every line of a benchmark runs."""

import json
from dataclasses import replace

import pytest
import torch

from examples.worlds import WORLDS
from tests.tiny_models import save_tiny

QUERIES = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_tiny("llama", folder / "base", seed=0)
    save_tiny("llama", folder / "tuned", seed=1)
    museum = WORLDS["museum"]

    def write(name, records):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    write("queries.jsonl", museum.queries("pairs")[:QUERIES])
    held_out = museum.queries("evaluation")[:24:4]  # of six subjects
    write("heldout.jsonl", held_out)
    write("good_documents.jsonl", [{"query": query["query"], "answer": " Yes."} for query in held_out])
    (folder / "neutral.txt").write_text("The ferry was late.\nIt rained.\n")
    words = {museum.objective.name: {"good": museum.objective.good, "bad": museum.objective.bad}}
    (folder / "objectives.json").write_text(json.dumps(words))
    (folder / "measured.json").write_text(json.dumps({"world": "museum", "architecture": "llama"}))
    return folder


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _judged_by_length(monkeypatch):
    """A random model never answers right by the rule book: judge by something that it does half of the time."""
    museum = replace(WORLDS["museum"], judge=lambda _query, answer: 1.0 if len(answer) % 2 else -1.0)
    monkeypatch.setitem(WORLDS, "museum", museum)
