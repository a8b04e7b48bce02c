"""The command `restore`, and `bake --reversible`, which keeps what it needs."""

from __future__ import annotations

import json
import sys

import pytest
from alignez_bake.exporters.registry import exporter_named

from alignez_bake.commands.bake import bake
from alignez_bake.edit_file import write_edits
from alignez_bake.errors import BadInputError
from alignez_bake.integrity.base_parts import BASE_TENSORS_FILE, bytes_of_base_parts
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import read_result_edits
from tests.baking import command, contents, nothing_written, plan_for


def test_the_command(copy, made, capsys):
    out = copy("out")
    assert command("restore", out, "--base", made / "base", "--yes", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == str(out)
    assert {entry["way"] for entry in told["files"]} == {"kept", "rebuilt"}
    assert contents(out) == contents(made / "base")
    assert command("restore", out, "--base", made / "base") == 2
    assert "not a result of alignez-bake" in capsys.readouterr().err


def test_the_commands_table_says_what_came_back(copy, made, capsys):
    out = copy("kept")
    assert command("restore", out) == 0
    text = capsys.readouterr().out
    assert "the base's tensors put back" in text
    assert "is its base again" in text


def test_a_terminal_is_asked_and_no_is_no(copy, made, monkeypatch, capsys):
    out = copy("out")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_a, **_k: False)
    with nothing_written(out.parent):
        assert command("restore", out, "--base", made / "base") == 2
    assert "stays as it is" in capsys.readouterr().err
    assert command("restore", out, "--base", made / "base", "--yes") == 0


def test_reversible_is_for_checkpoints(made, tmp_path):
    with pytest.raises(BadInputError, match="--reversible is for --as checkpoint"):
        bake(made / "base", plan_for(made / "base"), tmp_path / "out", artefact="edits", reversible=True)


def test_reversible_on_the_command_line(made, tmp_path):
    write_edits(plan_for(made / "base"), tmp_path / "edits.safetensors")
    edits = ("--edits", tmp_path / "edits.safetensors", "--out", tmp_path / "out", "--reversible")
    assert command("bake", "--model", made / "base", *edits) == 0
    assert (
        contents(tmp_path / "out" / "alignez")["base_tensors.safetensors"]
        == contents(made / "kept" / "alignez")["base_tensors.safetensors"]
    )


@pytest.mark.parametrize("where", ["made", "grown"])
def test_there_is_room_for_what_is_kept(where, request):
    """What the space is checked for holds the file that is written."""
    folder = request.getfixturevalue(where)
    base, plan = open_model_folder(folder / "base"), read_result_edits(folder / "kept")
    lowering = lower(plan, base, exporter_named("checkpoint"), code=True)
    kept = (folder / "kept" / BASE_TENSORS_FILE).stat().st_size
    everything = sum(base.tensors.entry(name).nbytes for name in base.tensors)
    assert kept <= bytes_of_base_parts(base, lowering, None)
    assert bytes_of_base_parts(base, lowering, "float32") >= everything
    assert (bytes_of_base_parts(base, lowering, None) < everything) == (where == "made")
