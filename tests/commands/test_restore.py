"""`restore`: a baked checkpoint is its base again, byte for byte, or nothing happens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from alignez_bake.exporters.registry import exporter_named

from alignez_bake.commands.bake import bake
from alignez_bake.commands.restore import restore
from alignez_bake.commands.verify import verify
from alignez_bake.edit_file import write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.integrity import swap
from alignez_bake.integrity.base_parts import BASE_TENSORS_FILE, bytes_of_base_parts
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import read_result_edits
from alignez_bake.safetensors_io.reader import open_folder
from tests.baking import command, contents, flipped, nothing_written, plan_for, replace_tensors
from tests.commands.small_bakes import edits_at, routes, small_base

SHARDS = "20KB"


def with_extras(base: Path) -> Path:
    """A base with a card, a licence in a folder, and tensors that no architecture knows."""
    (base / "README.md").write_text("# The base\n")
    (base / "legal").mkdir()
    (base / "legal" / "LICENSE").write_text("all yours\n")
    return base


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden things included."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A sharded `base`, and of the same edits `out`, `kept` (reversible) and `wide` (float32). Never change it."""
    folder = tmp_path_factory.mktemp("restore")
    base = with_extras(small_base("llama", folder / "base", dtype=torch.bfloat16, max_shard_size=SHARDS))
    assert len(open_folder(base).files) > 2
    plan = plan_for(base, ("attn_write",))
    for name, settings in {"out": {}, "kept": {"reversible": True}, "wide": {"dtype": "float32"}}.items():
        assert bake(base, plan, folder / name, **settings).verdict == "passed"
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """`copy(name)`: a result of one's own."""
    return lambda name: shutil.copytree(made / name, tmp_path / "here" / name)


def test_a_bake_changes_what_restore_brings_back(made):
    assert contents(made / "out")["README.md"] != contents(made / "base")["README.md"]
    before, after = open_folder(made / "base"), open_folder(made / "out")
    changed = [name for name in before if before.read(name).tobytes() != after.read(name).tobytes()]
    assert len(changed) == 2


@pytest.mark.parametrize("name", ["out", "kept", "wide"])
def test_with_the_base_at_hand(name, made, copy):
    out = copy(name)
    with nothing_written(made):
        result = restore(out, made / "base")
    assert contents(out) == contents(made / "base")
    assert names_in(out.parent) == [name]
    ways = dict(result.files)
    assert ways["README.md"] == ways["tokenizer.json"] == "kept"
    assert "rebuilt" in ways.values()
    assert result.source == str(made / "base")


def test_with_what_the_result_kept_no_base_is_needed(copy, made):
    out = copy("kept")
    stored = open_folder(made / "base")
    edited = sum(stored.entry(name).nbytes for name in stored if "o_proj" in name)
    assert edited < (out / BASE_TENSORS_FILE).stat().st_size < edited + 1000
    restore(out)
    assert contents(out) == contents(made / "base")


def test_without_either_the_base_is_looked_for_where_it_lay(made, tmp_path):
    shutil.copytree(made, tmp_path / "all")
    restore(tmp_path / "all" / "out")
    assert contents(tmp_path / "all" / "out") == contents(made / "base")
    (tmp_path / "all" / "base").rename(tmp_path / "all" / "elsewhere")
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=r"--reversible.* name it with --base BASE"):
        restore(tmp_path / "all" / "wide")


def test_reversible_with_another_dtype_keeps_all(made, tmp_path):
    plan = plan_for(made / "base")
    bake(made / "base", plan, tmp_path / "out", dtype="float32", reversible=True)
    restore(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(made / "base")


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """A qwen2 `base`; `out` is a llama with new biases, units and a module; `kept` is the same, reversible."""
    folder = tmp_path_factory.mktemp("grown")
    base = with_extras(small_base("qwen2", folder / "base", max_shard_size=SHARDS))
    plan = EditPlan(
        (
            *edits_at(base, "attn_write", layers=[0], constant=True),
            *edits_at(base, "mlp_write", layers=[0], reads="block", gate="relu"),
            *edits_at(base, "mlp_write", layers=[1], gate="relu"),
        )
    )
    for name in ("out", "kept"):
        result = bake(base, plan, folder / name, trust_remote_code=True, reversible=name == "kept")
        assert result.verdict == "passed"
        assert set(routes(result).values()) == {"rehome", "insert"}
    return folder


@pytest.mark.parametrize("name", ["out", "kept"])
def test_biases_units_modules_and_code_go(name, grown, tmp_path):
    out = shutil.copytree(grown / name, tmp_path / name)
    result = restore(out, None if name == "kept" else grown / "base")
    assert contents(out) == contents(grown / "base")
    assert {"config.json": "taken", "tokenizer_config.json": "taken"}.items() <= dict(result.files).items()


def test_a_base_in_other_shards_gives_its_tensors(made, copy, tmp_path):
    """The same weights in one file: its header is not the result's base's, but the result has that."""
    from alignez_bake.safetensors_io.writer import write_tensors

    stored = open_folder(made / "base")
    other = tmp_path / "one_file"
    other.mkdir()
    shutil.copy(made / "base" / "config.json", other)
    write_tensors(other / "model.safetensors", {name: stored.read(name) for name in stored}, {"format": "pt"})
    out = copy("out")
    restore(out, other)
    assert contents(out) == contents(made / "base")


def test_what_is_shared_with_the_base_is_not_written_to(made, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    out = shutil.copytree(made / "out", tmp_path / "out")
    for name in ("tokenizer.json", open_folder(base).files[-1]):
        (out / name).unlink()
        (out / name).hardlink_to(base / name)
    with nothing_written(base):
        restore(out, base)
    assert contents(out) == contents(base)


def test_a_bake_that_links_leaves_its_base_alone_when_it_is_undone(made, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    plan = EditPlan(plan_for(base).edits[:1])
    bake(base, plan, tmp_path / "out", link=True)
    linked = [name for name in open_folder(base).files if (tmp_path / "out" / name).samefile(base / name)]
    assert linked
    with nothing_written(base):
        restore(tmp_path / "out", base)
    assert contents(tmp_path / "out") == contents(base)
    assert all((tmp_path / "out" / name).samefile(base / name) for name in linked)


# Refused -------------------------------------------------------------------------------------------------------------


def refused(out: Path, base: Path | None, says: str) -> None:
    with nothing_written(out.parent), pytest.raises(BadInputError, match=says):
        restore(out, base)


def test_other_artefacts_are_refused_by_name(made, tmp_path):
    bake(made / "base", plan_for(made / "base"), tmp_path / "edits", artefact="edits")
    refused(tmp_path / "edits", made / "base", "restore undoes checkpoints, and .* is --as 'edits'")


def test_what_is_no_result_is_refused(made, tmp_path):
    refused(made / "base", made / "base", "not a result of alignez-bake")
    with pytest.raises(BadInputError, match="no such result folder"):
        restore(tmp_path / "absent", made / "base")


def test_a_result_of_an_earlier_version_is_refused(copy, made):
    out = copy("out")
    (out / "alignez" / "manifest.json").unlink()
    refused(out, made / "base", "has no alignez/manifest.json, without which nothing proves")


def test_another_base_is_refused(copy, tmp_path):
    other = small_base("llama", tmp_path / "other", dtype=torch.float32)
    refused(copy("out"), other, "is not the base that .* was made from: name the right one with --base")


def test_files_that_nobody_baked_are_not_lost(copy, made):
    out = copy("out")
    (out / "notes.txt").write_text("mine")
    refused(out, made / "base", r"1 file\(s\) that the bake did not write .*'notes\.txt'")


def test_links_are_refused(copy, made, tmp_path):
    out = copy("out")
    (out / "tokenizer.json").rename(tmp_path / "blob")
    (out / "tokenizer.json").symlink_to(tmp_path / "blob")
    refused(out, made / "base", "holds links .*tokenizer.json")
    (tmp_path / "link").symlink_to(copy("kept"))
    refused(tmp_path / "link", made / "base", "is a link")


def test_a_result_without_the_bases_part_is_refused_before_anything_is_made(grown, tmp_path):
    """The base that is at hand has no such file any more."""
    shutil.copytree(grown, tmp_path / "all")
    (tmp_path / "all" / "base" / "tokenizer_config.json").unlink()
    refused(tmp_path / "all" / "out", tmp_path / "all" / "base", "tokenizer_config.json of the base .* is not in")


CHANGED = {
    "a tensor without an edit": lambda out: replace_tensors(
        out, lambda name, values: flipped(values) if "embed_tokens" in name else None
    ),
    "the tokenizer": lambda out: (out / "tokenizer.json").write_text((out / "tokenizer.json").read_text() + " "),
    "the base's card": lambda out: (out / "alignez" / "base_README.md").write_text("# Another\n"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_changed_since_the_bake_is_not_passed_for_the_base(case, copy, made):
    out = copy("kept")
    CHANGED[case](out)
    with nothing_written(out.parent), pytest.raises(CheckFailedError, match="gives a file of the base's hash"):
        restore(out)
    assert verify(out, made / "base", level="manifest").verdict == "failed"
    # The base itself has it.
    assert "taken" in dict(restore(out, made / "base").files).values()
    assert contents(out) == contents(made / "base")


def test_what_the_hub_writes_anew_comes_from_the_base(made, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    for name in (".gitattributes", ".mailmap"):
        (base / name).write_text(f"{name} of the base")
    bake(base, plan_for(base), tmp_path / "out")
    (tmp_path / "out" / ".gitattributes").write_text("the hub's")
    (tmp_path / "out" / ".mailmap").unlink()
    assert dict(restore(tmp_path / "out", base).files)[".mailmap"] == "taken"
    assert contents(tmp_path / "out") == contents(base)


def test_what_was_kept_and_changed_is_not_passed_for_the_base(copy):
    out = copy("kept")
    data = bytearray((out / BASE_TENSORS_FILE).read_bytes())
    data[-1] ^= 1
    (out / BASE_TENSORS_FILE).write_bytes(data)
    with nothing_written(out.parent), pytest.raises(CheckFailedError, match="gives a file of the base's hash"):
        restore(out)


def test_a_base_that_changed_where_its_fingerprint_does_not_look_is_found(grown, tmp_path):
    shutil.copytree(grown, tmp_path / "all")
    config = tmp_path / "all" / "base" / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    with (
        nothing_written(tmp_path),
        pytest.raises(CheckFailedError, match=r"tokenizer_config\.json cannot be restored"),
    ):
        restore(tmp_path / "all" / "out", tmp_path / "all" / "base")


# Killed --------------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from alignez_bake.commands import restore as restoring
from alignez_bake.integrity import swap
step, exchanges = sys.argv[3], sys.argv[4] == "exchange"
if not exchanges:
    swap._exchanged = lambda one, other: False
seen = 0

def killed_at(name, function):
    def run(*arguments, **settings):
        global seen
        seen += name == step.split(":")[0]
        if name == step.split(":")[0] and seen == int(step.split(":")[1]):
            os.kill(os.getpid(), 9)
        return function(*arguments, **settings)
    return run

restoring.make_file = killed_at("make", restoring.make_file)
restoring.swap_folders = killed_at("swap", restoring.swap_folders)
restoring.shutil.rmtree = killed_at("remove", restoring.shutil.rmtree)
Path.rename = killed_at("rename", Path.rename)
restoring.restore(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize(
    ("step", "how", "restored"),
    [
        ("make:1", "exchange", False),
        ("make:6", "exchange", False),
        ("swap:1", "exchange", False),
        ("remove:1", "exchange", True),
        ("rename:2", "renames", None),
        ("remove:1", "renames", True),
    ],
)
def test_a_kill_leaves_either_and_the_same_command_goes_on(step, how, restored, copy, made):
    out = copy("out")
    before = contents(out)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, out, made / "base", step, how],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -9, done.stderr
    # Between two renames the folder lies aside, whole; the next run puts it back.
    assert out.exists() is (restored is not None)
    found = contents(out if out.exists() else swap.aside(out))
    assert found == (contents(made / "base") if restored else before)
    restore(out, made / "base")
    assert contents(out) == contents(made / "base")
    assert names_in(out.parent) == ["out"]


def test_a_folder_that_cannot_be_renamed_stays(copy, made, monkeypatch):
    def busy(_new, _old):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(swap, "_exchanged", busy)
    out = copy("out")
    with (
        nothing_written(out.parent),
        pytest.raises(BadInputError, match=r"cannot be replaced \(Device or resource busy"),
    ):
        restore(out, made / "base")


def test_without_exchange_of_names_it_takes_two_renames(copy, made, monkeypatch):
    monkeypatch.setattr(swap, "_exchanged", lambda _new, _old: False)
    out = copy("out")
    restore(out, made / "base")
    assert contents(out) == contents(made / "base")
    assert names_in(out.parent) == ["out"]


def test_without_hard_links_it_copies(copy, made, monkeypatch):
    def no_links(*_names):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", no_links)
    out = copy("out")
    restore(out, made / "base")
    assert contents(out) == contents(made / "base")


# Command -------------------------------------------------------------------------------------------------------------


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
