"""A baked checkpoint is its base again, byte for byte."""

from __future__ import annotations

import shutil

import pytest

from alignez_bake.commands.bake import bake
from alignez_bake.commands.restore import restore
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.integrity.base_parts import BASE_TENSORS_FILE
from alignez_bake.safetensors_io.reader import open_folder
from tests.baking import contents, nothing_written, plan_for
from tests.commands.restore.conftest import names_in


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


def test_what_the_hub_writes_anew_comes_from_the_base(made, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    for name in (".gitattributes", ".mailmap"):
        (base / name).write_text(f"{name} of the base")
    bake(base, plan_for(base), tmp_path / "out")
    (tmp_path / "out" / ".gitattributes").write_text("the hub's")
    (tmp_path / "out" / ".mailmap").unlink()
    assert dict(restore(tmp_path / "out", base).files)[".mailmap"] == "taken"
    assert contents(tmp_path / "out") == contents(base)
