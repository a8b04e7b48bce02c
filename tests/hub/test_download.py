"""Bases and edits from a hub, through the real client."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest

from alignez_bake.edit_file import write_edits
from alignez_bake.errors import BadInputError
from alignez_bake.hub.download import base_folder, edits_file, hub_name
from tests.baking import plan_for
from tests.hub.conftest import files_of, run_python
from tests.hub.local_hub import OWNER, READER, STRANGER

BASE = """
import sys
from alignez_bake.errors import BadInputError
from alignez_bake.hub.download import base_folder
try:
    print(base_folder(sys.argv[1], trust_remote_code="trust" in sys.argv[2:]))
except BadInputError as error:
    sys.exit(f"refused: {error}")
"""
EDITS = BASE.replace("base_folder", "edits_file").replace(', trust_remote_code="trust" in sys.argv[2:]', "")
POINT = """
import sys
from alignez_bake.commands.asked_edits import plan_of
from alignez_bake.errors import BadInputError
try:
    print(*(edit.strength for edit in plan_of(sys.argv[1], None, sys.argv[2]).edits))
except BadInputError as error:
    sys.exit(f"refused: {error}")
"""
FORBIDDEN = dict.fromkeys(
    (
        *("pytorch_model.bin", "model.pt", "weights.pkl", "model.gguf", "onnx/model.onnx", "onnx/config.json"),
        *("tf_model.h5", "flax_model.msgpack", "LICENSE.bin", "consolidated.safetensors", "original/model.safetensors"),
        *("notes.json", "modeling.py", "training_args.bin", ".hidden"),
    ),
    b"never",
)


def refusal(ran):
    """The one line that a refused download prints."""
    assert ran.status == 1, ran
    line = ran.errors[-1]
    assert line.startswith("refused: "), ran.errors
    assert not any("Traceback" in text for text in ran.errors)
    return line


def test_a_local_folder_is_returned_as_it_is(hub_base, tmp_path, monkeypatch):
    monkeypatch.chdir(hub_base.parent)
    assert base_folder(hub_base) == hub_base
    assert base_folder(hub_base.name).samefile(hub_base)
    (tmp_path / "user" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_folder("user/repo").samefile(tmp_path / "user" / "repo"), "what exists here comes first"
    assert hub_name("user/repo") is None
    assert hub_name("user/other@v1") == "user/other"
    assert hub_name("./nowhere") is None


@pytest.mark.parametrize("text", ["nowhere", "/no/such/folder", "a/b/c", "./user/repo", "user/re po"])
def test_neither_a_folder_nor_a_name(text):
    with pytest.raises(BadInputError, match=r"no such model folder: .*user/repo\[@revision\]"):
        base_folder(text)
    with pytest.raises(BadInputError, match=r"no such file of edits: .*user/repo\[@revision\]"):
        edits_file(text)


def test_only_safetensors_and_what_belongs_to_them_are_downloaded(local_hub, hub_base):
    wanted = files_of(hub_base)
    assert sum(name.endswith(".safetensors") for name in wanted) > 1, "the test is about shards"
    names = ("additional_chat_templates/tool.jinja", "LICENSE", "chat_template.jinja")
    # Each with content of its own: the client downloads equal content once.
    extras = {name: name.encode() for name in names}
    local_hub.store.add("user/base", {**wanted, **extras, **FORBIDDEN})
    ran = run_python(local_hub.env(), BASE, "user/base")
    assert ran.status == 0, ran.errors
    assert local_hub.downloaded() == {f"user/base/{name}" for name in (*wanted, *extras)}
    assert "/snapshots/" in ran.out


def test_code_comes_only_with_the_flag(local_hub, hub_base):
    local_hub.store.add("user/base", {**files_of(hub_base), **FORBIDDEN})
    assert run_python(local_hub.env(), BASE, "user/base", "trust").status == 0
    assert "user/base/modeling.py" in local_hub.downloaded()
    assert not {f"user/base/{name}" for name in FORBIDDEN if name != "modeling.py"} & local_hub.downloaded()


def test_what_was_downloaded_is_read_and_baked(local_hub, hub_base, tmp_path):
    """Links into the cache's `blobs` are allowed, and the result holds real files."""
    local_hub.store.add("user/base", files_of(hub_base))
    write_edits(plan_for(hub_base), tmp_path / "edits.safetensors")
    code = """
import sys
from alignez_bake.commands.bake import bake
from alignez_bake.hub.download import base_folder
folder = base_folder("user/base")
assert (folder / "config.json").is_symlink()
print(bake(folder, sys.argv[1], sys.argv[2]).verdict)
"""
    ran = run_python(local_hub.env(), code, tmp_path / "edits.safetensors", tmp_path / "out")
    assert ran.status == 0, ran.errors
    assert ran.out.split() == ["passed"]
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_single_file_and_a_revision(local_hub, save_tiny, tmp_path):
    files = files_of(save_tiny("llama", tmp_path / "one"))
    other = files_of(save_tiny("llama", tmp_path / "two", seed=1))
    local_hub.store.add("user/base", files)
    commit = local_hub.store.add("user/base", other, branch="v2")
    local_hub.store.add("user/base", files)
    for revision in ("v2", commit):
        ran = run_python(local_hub.env(home=revision), BASE, f"user/base@{revision}")
        assert ran.status == 0, ran.errors
        assert ran.out.strip().endswith(commit)
    assert other["model.safetensors"] != files["model.safetensors"]
    line = refusal(run_python(local_hub.env(), BASE, "user/base@v3"))
    assert "user/base has no revision 'v3'" in line


def test_the_second_time_and_offline_nothing_is_downloaded(local_hub, hub_base):
    local_hub.store.add("user/base", files_of(hub_base))
    first = run_python(local_hub.env(), BASE, "user/base")
    local_hub.requests.clear()
    again = run_python(local_hub.env(), BASE, "user/base")
    assert again.out == first.out
    assert not local_hub.downloaded()
    local_hub.requests.clear()
    offline = run_python(local_hub.env(HF_HUB_OFFLINE="1"), BASE, "user/base")
    assert offline.out == first.out
    assert not local_hub.requests


@pytest.mark.parametrize("code", [BASE, EDITS], ids=["base", "edits"])
def test_offline_without_cache(code, local_hub):
    line = refusal(run_python(local_hub.env(HF_HUB_OFFLINE="1"), code, "user/base"))
    assert "user/base" in line
    assert "HF_HUB_OFFLINE is set" in line
    assert not local_hub.requests


@pytest.mark.parametrize(
    ("token", "expected"),
    [(None, "hf auth login"), (STRANGER, "your token cannot see it"), ("hf_wrong", "does not accept the token")],
)
def test_no_such_or_private_repository(token, expected, local_hub, hub_base):
    local_hub.store.add("user/secret", files_of(hub_base), private=True)
    for repo in ("user/secret", "user/missing"):
        line = refusal(run_python(local_hub.env(token=token), BASE, repo))
        assert repo in line
        assert expected in line
    assert not local_hub.downloaded()


def test_a_private_repository_with_a_token_that_may_read_it(local_hub, hub_base):
    local_hub.store.add("user/secret", files_of(hub_base), private=True)
    assert run_python(local_hub.env(token=READER), BASE, "user/secret").status == 0


@pytest.mark.parametrize(("token", "expected"), [(None, "there is no token"), (STRANGER, "not on its list")])
def test_gated(token, expected, local_hub, hub_base):
    local_hub.store.add("user/gated", files_of(hub_base), gated=True)
    line = refusal(run_python(local_hub.env(token=token), BASE, "user/gated"))
    assert "user/gated is gated" in line
    assert expected in line
    assert f"{local_hub.url}/user/gated" in line
    assert run_python(local_hub.env(token=OWNER), BASE, "user/gated").status == 0


def test_no_connection(local_hub):
    line = refusal(run_python(local_hub.env(HF_ENDPOINT="http://127.0.0.1:9"), BASE, "user/base"))
    assert re.search(r"user/base: no connection to http://127\.0\.0\.1:9 \(\w+\): check the network", line)


def test_a_hub_that_fails(local_hub, hub_base):
    local_hub.store.add("user/base", files_of(hub_base))
    local_hub.broken.append("/api/models/user/base")
    line = refusal(run_python(local_hub.env(), BASE, "user/base"))
    assert "user/base: the hub answered 500: try again in a while" in line


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": b"a data set?"}, "is no model: it has no config.json"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "has no model.safetensors: only safetensors are read"),
    ],
)
def test_repositories_without_a_model_that_we_read(files, expected, local_hub):
    local_hub.store.add("user/base", files)
    assert expected in refusal(run_python(local_hub.env(), BASE, "user/base"))
    assert "user/base/pytorch_model.bin" not in local_hub.downloaded()


def test_an_index_that_leaves_the_folder_is_refused(local_hub):
    index = b'{"weight_map": {"a": "../../../evil.safetensors"}}'
    local_hub.store.add("user/base", {"config.json": b"{}", "model.safetensors.index.json": index})
    assert "plain name" in refusal(run_python(local_hub.env(), BASE, "user/base"))


@pytest.mark.parametrize("name", ["edits.safetensors", "alignez/edits.safetensors"])
def test_of_a_repository_of_edits_only_the_edits_are_downloaded(name, local_hub, hub_base, tmp_path):
    write_edits(plan_for(hub_base), tmp_path / "edits.safetensors")
    local_hub.store.add("user/edits", {**files_of(hub_base), name: (tmp_path / "edits.safetensors").read_bytes()})
    read = "from alignez_bake.edit_file import read_edits\nprint(len(read_edits(edits_file('user/edits')).edits))"
    ran = run_python(local_hub.env(), f"{EDITS}\n{read}", "user/edits")
    assert ran.status == 0, ran.errors
    assert ran.out.splitlines()[-1] == "2"
    assert local_hub.downloaded() == {f"user/edits/{name}"}


def test_a_repository_without_edits(local_hub, hub_base):
    local_hub.store.add("user/base", files_of(hub_base))
    line = refusal(run_python(local_hub.env(), EDITS, "user/base"))
    assert "user/base has neither edits.safetensors nor alignez/edits.safetensors" in line
    assert not local_hub.downloaded()


@pytest.fixture
def search(local_hub, hub_base, tmp_path):
    """The edits of `user/aligned`, a result with two other candidates of its search, and more beside them."""
    write_edits(plan_for(hub_base), tmp_path / "edits.safetensors")
    data = (tmp_path / "edits.safetensors").read_bytes()
    others = ("edits.frontier/notes.txt", "edits.frontier/deep/ridge-2.safetensors", "ridge-3.safetensors")
    # Each with content of its own: the client downloads equal content once.
    files = {
        "edits.safetensors": data,
        "edits.frontier/ridge-1.safetensors": edits_of_strength(tmp_path, hub_base, 2.0),
        "edits.frontier/ridge-1.5.safetensors": edits_of_strength(tmp_path, hub_base, 3.0),
        **{name: name.encode() for name in others},
    }
    local_hub.store.add(
        "user/aligned", {**files_of(hub_base), **{f"alignez/{name}": data for name, data in files.items()}}
    )
    return data


def edits_of_strength(folder, base, strength):
    plan = plan_for(base)
    edits = tuple(replace(edit, strength=strength) for edit in plan.edits)
    write_edits(replace(plan, edits=edits), folder / "other.safetensors")
    return (folder / "other.safetensors").read_bytes()


def test_of_another_candidate_nothing_else_is_downloaded(local_hub, search):
    ran = run_python(local_hub.env(), POINT, "user/aligned", "ridge-1")
    assert ran.status == 0, ran.errors
    assert ran.out.split() == ["2.0", "2.0"]
    names = ("edits.safetensors", "edits.frontier/ridge-1.safetensors")
    assert local_hub.downloaded() == {f"user/aligned/alignez/{name}" for name in names}

    local_hub.requests.clear()
    offline = local_hub.env(HF_HUB_OFFLINE="1")
    assert run_python(offline, POINT, "user/aligned", "ridge-1").out == ran.out
    line = refusal(run_python(offline, POINT, "user/aligned", "ridge-1.5"))
    assert "of user/aligned in the local cache, and HF_HUB_OFFLINE is set: it has 'ridge-1'" in line
    assert not local_hub.requests


@pytest.mark.parametrize(
    "point", ["ridge-2", "../edits", "deep/ridge-2", "ridge-*", "/etc/passwd", "", "ridge-1.safetensors", "notes"]
)
def test_a_candidate_that_is_not_there_is_asked_for_by_no_path(point, local_hub, search):
    line = refusal(run_python(local_hub.env(), POINT, "user/aligned", point))
    assert line.endswith(f"--point {point!r} is no candidate of user/aligned: it has 'ridge-1', 'ridge-1.5'")
    assert local_hub.downloaded() == {"user/aligned/alignez/edits.safetensors"}


def test_edits_of_a_repository_without_a_search_have_no_candidates(local_hub, search):
    local_hub.store.add("user/edits", {"edits.safetensors": search})
    line = refusal(run_python(local_hub.env(), POINT, "user/edits", "ridge-1"))
    assert line.endswith("--point 'ridge-1' is no candidate of user/edits: no candidates lie beside it")


def test_a_damaged_candidate_is_refused_as_damaged_edits_are(local_hub, search):
    damaged = {"edits.safetensors": search, "edits.frontier/ridge-1.safetensors": search[:-4]}
    local_hub.store.add("user/edits", damaged)
    line = refusal(run_python(local_hub.env(), POINT, "user/edits", "ridge-1"))
    assert "ridge-1.safetensors" in line


def test_local_edits(result, tmp_path):
    own = result / "alignez" / "edits.safetensors"
    assert edits_file(own) == own
    assert edits_file(result) == own
    shutil.copyfile(own, tmp_path / "edits.safetensors")
    assert edits_file(str(tmp_path)) == tmp_path / "edits.safetensors"
    (tmp_path / "edits.safetensors").unlink()
    with pytest.raises(BadInputError, match="has neither"):
        edits_file(tmp_path)


def test_a_full_disk_is_named(local_hub, hub_base, tmp_path):
    local_hub.store.add("user/base", files_of(hub_base))
    (tmp_path / "file").write_text("in the way")
    line = refusal(run_python(local_hub.env(HF_HOME=str(tmp_path / "file")), BASE, "user/base"))
    assert "HF_HOME" in line
    assert str(tmp_path / "file") in line
