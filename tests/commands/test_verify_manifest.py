"""`verify` and the manifest: of every artefact, without a base, and of a result that somebody changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from alignez_bake.commands.bake import bake
from alignez_bake.commands.restore import restore
from alignez_bake.commands.verify import verify
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.integrity.folder_files import MANIFEST_FILE, files_in
from alignez_bake.integrity.hashing import hash_file, hash_tensor
from alignez_bake.integrity.manifest import read_manifest
from alignez_bake.safetensors_io.reader import open_folder
from tests.baking import command, flipped, nothing_written, plan_for, replace_tensors
from tests.commands.small_bakes import edits_at, small_base

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A sharded `base` and a result `out` beside it. Never change it."""
    folder = tmp_path_factory.mktemp("made")
    base = small_base("llama", folder / "base", max_shard_size="60KB")
    (base / "README.md").write_text("# The base\n")
    assert bake(base, plan_for(base), folder / "out").verdict == "passed"
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of both; the result's path."""
    return shutil.copytree(made, tmp_path / "copy") / "out"


def edited(folder: Path) -> list[str]:
    return [name for name in open_folder(folder) if "o_proj" in name]


# Written -------------------------------------------------------------------------------------------------------------


def test_a_checkpoints_manifest_says_what_lies_there(made):
    base, out = made / "base", made / "out"
    manifest = read_manifest(out)
    assert manifest.algorithm == "blake3-leaves"
    assert sorted(manifest.files) == files_in(out)
    for name, entry in manifest.files.items():
        assert (entry.size, entry.hash) == hash_file(out / name), name
        of_base = None if name.startswith("alignez/") else hash_file(base / name)[1]
        assert entry.base_hash == of_base, name
    assert sorted(manifest.tensors) == edited(out)
    for name, entry in manifest.tensors.items():
        for folder, found in ((out, entry.hash), (base, entry.base_hash)):
            tensors = open_folder(folder)
            assert found == hash_tensor(tensors.header(entry.file), tensors.entry(name)), name
        assert entry.hash != entry.base_hash
    ways = {name: entry.way for name, entry in manifest.files.items()}
    assert ways["tokenizer.json"] == "copied"
    assert ways["README.md"] == ways[manifest.tensors[edited(out)[0]].file] == "written"


def test_the_same_bake_gives_the_same_manifest(made, tmp_path):
    shutil.copytree(made / "base", tmp_path / "base")
    bake(tmp_path / "base", plan_for(tmp_path / "base"), tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST_FILE).read_bytes() == (made / "out" / MANIFEST_FILE).read_bytes()


OTHERS = {"sha256": lambda data: hashlib.sha256(data).hexdigest(), "blake3": lambda data: blake3(data).hexdigest()}


@pytest.mark.parametrize("algorithm", OTHERS)
def test_other_tools_hashes_on_request(algorithm, made, tmp_path):
    """`blake3` is also what earlier versions wrote: their results are verified and restored as before."""
    result = bake(made / "base", plan_for(made / "base"), tmp_path / "out", hash_algorithm=algorithm)
    manifest = read_manifest(result.path)
    assert manifest.algorithm == algorithm
    for name, entry in manifest.files.items():
        assert entry.hash == OTHERS[algorithm]((result.path / name).read_bytes())
    assert verify(result.path, made / "base", level="tensors").verdict == "passed"
    restore(result.path, made / "base")
    assert {path.name for path in result.path.iterdir()} == {path.name for path in (made / "base").iterdir()}


def test_a_result_that_failed_has_one_too(made, tmp_path):
    plan = plan_for(made / "base", scale=1e-9)
    result = bake(made / "base", plan, tmp_path / "out")
    assert (result.verdict, result.path.name) == ("failed", "out.failed")
    assert sorted(read_manifest(result.path).files) == files_in(result.path)


@pytest.mark.parametrize("artefact", ["adapter", "gguf", "edits"])
def test_other_artefacts_have_one(artefact, made, tmp_path):
    result = bake(made / "base", plan_for(made / "base"), tmp_path / "out", artefact=artefact)
    manifest = read_manifest(result.path)
    assert sorted(manifest.files) == files_in(result.path)
    assert not manifest.tensors
    assert verify(result.path, made / "base", level="tensors").manifest.verdict == "passed"
    (name,) = [name for name in manifest.files if name.endswith((".gguf", ".safetensors")) and "/" not in name][:1]
    data = bytearray((result.path / name).read_bytes())
    data[-1] ^= 1
    (result.path / name).write_bytes(data)
    found = verify(result.path, made / "base", level="manifest")
    assert found.reasons == (f"'{name}' was changed",)


# Checked -------------------------------------------------------------------------------------------------------------


def test_with_the_base_both_are_checked(made):
    result = verify(made / "out", level="tensors")
    assert (result.verdict, result.manifest.verdict) == ("passed", "passed")
    assert [level.level for level in result.levels] == ["tensors"]
    assert result.manifest.not_checked == ()
    told = result.to_json()
    assert told["manifest"]["files"] == len(files_in(made / "out"))
    assert told["certificate"]["tensors"]["verdict"] == "passed"


def test_a_changed_result_is_not_run(copy):
    replace_tensors(copy, lambda name, values: flipped(values) if "embed_tokens" in name else None)
    result = verify(copy)
    assert [level.level for level in result.levels] == ["tensors"]
    assert "1 tensor(s) without an edit differ from the base's: model.embed_tokens.weight" in result.reasons[0]
    assert "was changed, and none of its edited tensors" in result.reasons[1]


def test_a_card_that_was_changed_is_found_by_the_manifest_alone(copy):
    (copy / "README.md").write_text("# Another\n")
    result = verify(copy, level="tensors")
    assert result.levels[0].verdict == "passed"
    assert result.verdict == "failed"
    assert result.reasons[0].startswith("'README.md' ")
    with pytest.raises(CheckFailedError, match=r"README\.md"):
        result.raise_if_failed()


def test_what_is_too_damaged_to_compare_is_status_1_and_named(copy, capsys):
    shard = open_folder(copy).files[1]
    os.truncate(copy / shard, 200)
    assert command("verify", copy, "--level", "tensors") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: the certificate is failed: '{shard}' was changed")


def test_a_shard_that_is_gone_is_status_1_and_named(copy, capsys):
    shard = open_folder(copy).files[0]
    (copy / shard).unlink()
    assert command("verify", copy) == 1
    assert f"'{shard}' is missing" in capsys.readouterr().err.splitlines()[-1]


def test_a_changed_record_is_found_before_it_is_believed(copy):
    (copy / "alignez" / "alignez.json").write_text("{}")
    result = verify(copy)
    assert result.verdict == "failed"
    assert result.reasons[0].startswith("'alignez/alignez.json' has 2 bytes")
    assert not result.levels


def test_a_damaged_manifest_is_refused(copy):
    (copy / MANIFEST_FILE).write_text("{}")
    with nothing_written(copy), pytest.raises(BadInputError, match="has format None"):
        verify(copy)


def test_a_wrong_base_stays_an_error(copy, tmp_path):
    other = small_base("llama", tmp_path / "other", overrides={"hidden_size": 48})
    with pytest.raises(BadInputError, match="is not the base that"):
        verify(copy, other)


def test_a_result_of_an_earlier_version_is_verified_as_before(copy):
    (copy / MANIFEST_FILE).unlink()
    result = verify(copy, level="tensors")
    assert (result.verdict, result.manifest) == ("passed", None)
    assert result.to_json()["manifest"] is None
    with pytest.raises(BadInputError, match=r"has no alignez/manifest\.json: use --level tensors"):
        verify(copy, level="manifest")


# Without a base ------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(copy) -> Path:
    """A result whose base is gone."""
    shutil.rmtree(copy.parent / "base")
    return copy


def test_without_a_base_it_says_what_was_checked_and_what_was_not(alone, capsys):
    result = verify(alone)
    assert (result.verdict, result.levels) == ("passed", ())
    of_tensors, of_forward = result.manifest.not_checked
    assert "the formula's and all else is the base's: the base of" in of_tensors
    assert "not where it was" in of_tensors
    assert "level forward" in of_forward
    assert result.manifest.as_base == sum(
        entry.hash == entry.base_hash for entry in read_manifest(alone).files.values()
    )
    assert command("verify", alone, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["certificate"]) == ("passed", {})
    assert told["manifest"]["not_checked"] == [of_tensors, of_forward]
    assert command("verify", alone) == 0
    text = capsys.readouterr().out
    assert "not checked" in text
    assert "files as written" in text


def test_without_a_base_what_was_changed_is_found(alone):
    replace_tensors(alone, lambda name, values: flipped(values) if name == edited(alone)[0] else None)
    result = verify(alone)
    assert result.verdict == "failed"
    (reason,) = result.reasons
    assert f"1 edited or added tensor(s) are not as they were written: '{edited(alone)[0]}'" in reason


@pytest.mark.parametrize("level", ["tensors", "forward"])
def test_a_level_that_needs_the_base_is_not_passed_over(level, alone):
    with pytest.raises(BadInputError, match="--model BASE; or check the result alone with --level manifest"):
        verify(alone, level=level)


def test_an_option_that_is_not_for_it_is_not_passed_over_without_a_base(alone, tmp_path):
    with pytest.raises(BadInputError, match="--base-onnx is for patched graphs"):
        verify(alone, base_onnx=tmp_path)


def test_the_manifest_alone_on_request(made):
    result = verify(made / "out", level="manifest")
    assert (result.verdict, result.levels) == ("passed", ())
    assert all("--level manifest was asked for" in limit for limit in result.manifest.not_checked)


def test_without_a_base_nothing_heavy_is_imported(alone):
    code = (
        "import sys\nfrom alignez_bake.cli.main import build_app\nfrom alignez_bake.cli.shell import run\n"
        f"assert run(build_app(), ['verify', {str(alone)!r}]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_inserted_parameters_are_listed_without_a_base_hash(tmp_path):
    from alignez_bake.edit_plan import EditPlan

    base = small_base("llama", tmp_path / "base")
    plan = EditPlan(tuple(edits_at(base, "mlp_write", layers=[1], gate="relu")))
    assert bake(base, plan, tmp_path / "out", trust_remote_code=True).verdict == "passed"
    manifest = read_manifest(tmp_path / "out")
    added = {name: entry for name, entry in manifest.tensors.items() if "alignez_edits" in name}
    assert added
    assert {entry.base_hash for entry in added.values()} == {None}
    assert manifest.files["modeling_alignez.py"].base_hash is None
    assert verify(tmp_path / "out", level="manifest").verdict == "passed"
