"""A tiny base for the whole way, and the command line in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.baking import command

if TYPE_CHECKING:
    from pathlib import Path

# Room for a persona sentence, a characteristic and an answer in the tiny tokenizer's tokens; short to be quick.
POSITIONS = 96


class Ran(NamedTuple):
    """What a command left: exit status, standard output, lines of standard error."""

    status: int
    out: str
    errors: list[str]

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)


@pytest.fixture(scope="session")
def cli_base(tmp_path_factory, save_tiny) -> Path:
    """A tiny llama. Never write into it."""
    return save_tiny("llama", tmp_path_factory.mktemp("cli") / "base", overrides={"max_position_embeddings": POSITIONS})


@pytest.fixture(scope="session")
def queries(tmp_path_factory) -> Path:
    """Twelve short queries, and one of them twice."""
    path = tmp_path_factory.mktemp("queries") / "queries.txt"
    path.write_text("\n".join([f"pot {number}?" for number in range(12)] + ["pot 3?"]) + "\n")
    return path


@pytest.fixture
def cli(capsys):
    """`cli(*arguments) -> Ran`: run the command line in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = command(*arguments)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err.splitlines())

    return run


@pytest.fixture
def whole_way(cli_base, queries):
    """The arguments of the whole way but for --out; of a model of random weights a search would find nothing better."""
    asked = ("--model", cli_base, "--queries", queries, "--prompt-template", "{query}", "--device", "cpu")
    return (*asked, "--method", "ridge")
