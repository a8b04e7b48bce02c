"""Results to a hub and back, through the real client."""

from __future__ import annotations

import json
import shutil

import pytest

from alignez_bake.commands.bake import bake
from alignez_bake.commands.push import push as push_result
from alignez_bake.errors import BadInputError
from alignez_bake.hub.upload import push_folder
from tests.baking import plan_for
from tests.hub.conftest import files_of, push, run_python
from tests.hub.local_hub import OWNER, READER, STRANGER


@pytest.fixture
def copy(result, tmp_path):
    """A result to change."""
    return shutil.copytree(result, tmp_path / "aligned")


def refusal(ran):
    """The one line of a refused push."""
    assert ran.status == 2, ran
    assert ran.errors[-1].startswith("error: ")
    assert not any("Traceback" in line for line in ran.errors)
    return ran.errors[-1]


def in_hub(hub, repo, branch="main"):
    """Name and content of every file of a branch, but for the one that the hub itself makes."""
    repository = hub.store.repositories[repo]
    tree = repository.commits[repository.branches[branch]]
    return {name: hub.store.path(file.sha256).read_bytes() for name, file in tree.items() if name != ".gitattributes"}


RELOAD = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
logits = []
for name in sys.argv[1:3]:
    model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    ids = torch.tensor([AutoTokenizer.from_pretrained(name)("one two three")["input_ids"]])
    with torch.no_grad():
        logits.append(model.eval()(ids).logits)
pushed, local = logits
print(float((pushed - local).norm() / local.norm()))
"""


def test_a_pushed_checkpoint_is_loaded_by_its_name(result, hub_base, local_hub):
    ran = push(local_hub.env(token=OWNER), result, "user/aligned", "--json")
    assert ran.status == 0, ran.errors
    document = ran.json
    assert document["url"] == f"{local_hub.url}/user/aligned"
    assert document["commit"] == local_hub.store.repositories["user/aligned"].branches["main"]
    assert in_hub(local_hub, "user/aligned") == files_of(result)
    assert {entry["name"]: entry["bytes"] for entry in document["files"]} == {
        name: len(data) for name, data in files_of(result).items()
    }
    assert document["total_bytes"] == sum(map(len, files_of(result).values()))
    own = run_python(local_hub.env(home="reader"), RELOAD, "user/aligned", result)
    assert own.status == 0, own.errors
    assert float(own.out) == 0.0
    base = run_python(local_hub.env(home="reader"), RELOAD, "user/aligned", hub_base)
    assert float(base.out) > 100 * 1e-5, "the pushed model is not the base"


def test_a_push_is_a_base_and_edits_for_others(result, local_hub):
    assert push(local_hub.env(token=OWNER), result, "user/aligned").status == 0
    code = """
from alignez_bake.edit_file import read_edits
from alignez_bake.hub.download import base_folder, edits_file
from alignez_bake.model_folder import open_model_folder
print(len(read_edits(edits_file("user/aligned")).edits), open_model_folder(base_folder("user/aligned")).num_layers)
"""
    ran = run_python(local_hub.env(home="other"), code)
    assert ran.status == 0, ran.errors
    assert ran.out.split() == ["2", "2"]


def test_a_dry_run_touches_no_network(result, local_hub):
    """Not even a token is needed, and any connection would fail."""
    ran = push(local_hub.env(HF_ENDPOINT="http://127.0.0.1:9"), result, "user/aligned", "--dry-run", "--json")
    assert ran.status == 0, ran.errors
    document = ran.json
    assert document["dry_run"] is True
    assert (document["url"], document["commit"]) == (None, None)
    assert {entry["name"] for entry in document["files"]} == set(files_of(result))
    assert not local_hub.requests
    shown = push(local_hub.env(), result, "user/aligned", "--dry-run", "--revision", "v1")
    assert "Files for user/aligned@v1" in shown.out
    assert all(name in shown.out for name in files_of(result))
    assert "Dry run: nothing was sent." in shown.out
    assert not local_hub.requests


def test_hidden_files_caches_and_locks_stay_here(copy, local_hub):
    for name in (".env", ".cache/huggingface/x", "alignez/.secret", ".git/config", "model.safetensors.lock"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("secret")
    (copy / "odd [name]*.txt").write_text("odd")
    ran = push(local_hub.env(token=OWNER), copy, "user/aligned", "--json")
    assert ran.status == 0, ran.errors
    sent = in_hub(local_hub, "user/aligned")
    assert "odd [name]*.txt" in sent
    assert {entry["name"] for entry in ran.json["files"]} == set(sent)
    assert not [name for name, data in sent.items() if data == b"secret"]


def test_a_link_that_leaves_the_folder_is_refused(copy, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (copy / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInputError, match="symlink"):
        push_folder(copy, "user/aligned", dry_run=True)


def test_the_same_push_again_sends_nothing(result, local_hub):
    env = local_hub.env(token=OWNER)
    first = push(env, result, "user/aligned", "--json").json
    sent = local_hub.uploads()
    assert sent > 0
    again = push(env, result, "user/aligned", "--json")
    assert again.status == 0, again.errors
    assert again.json["commit"] == first["commit"]
    assert local_hub.uploads() == sent


def test_a_push_that_broke_is_taken_up_again(result, local_hub):
    """Weights that arrived before the break are not sent twice."""
    env = local_hub.env(token=OWNER)
    local_hub.broken.append("/commit/")
    line = refusal(push(env, result, "user/aligned"))
    assert "user/aligned: the hub answered 500: try again in a while" in line
    sent = local_hub.uploads()
    assert sent > 0
    local_hub.broken.clear()
    assert push(env, result, "user/aligned").status == 0
    assert local_hub.uploads() == sent
    assert in_hub(local_hub, "user/aligned") == files_of(result)


def test_a_revision_is_made_where_it_is_not_there(result, copy, local_hub):
    env = local_hub.env(token=OWNER)
    assert push(env, result, "user/aligned", "--revision", "v1").status == 0
    assert in_hub(local_hub, "user/aligned") == {}
    assert in_hub(local_hub, "user/aligned", "v1") == files_of(result)
    (copy / "more.txt").write_text("more")
    assert push(env, copy, "user/aligned@v1").status == 0
    assert "more.txt" in in_hub(local_hub, "user/aligned", "v1")
    assert list(local_hub.store.repositories["user/aligned"].branches) == ["main", "v1"]
    assert "checkpoint" in local_hub.store.repositories["user/aligned"].messages[-1]


def test_private(result, local_hub):
    env = local_hub.env(token=OWNER)
    assert push(env, result, "user/open").status == 0
    assert push(env, result, "user/closed", "--private").status == 0
    private = {name: repository.private for name, repository in local_hub.store.repositories.items()}
    assert private == {"user/open": False, "user/closed": True}
    before = dict(local_hub.store.repositories["user/open"].branches)
    assert "user/open exists and is public" in refusal(push(env, result, "user/open", "--private"))
    assert local_hub.store.repositories["user/open"].branches == before
    assert push(env, result, "user/closed", "--private").status == 0


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, "user/aligned cannot be written without a token: log in with `hf auth login`, or set HF_TOKEN"),
        (READER, "user/aligned: your token may not write to it"),
        (STRANGER, "user/aligned: your token may not write to it"),
        ("hf_wrong", "user/aligned: the hub does not accept the token"),
    ],
)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_no_token_and_no_rights(token, expected, exists, result, local_hub):
    if exists:
        local_hub.store.add("user/aligned", {})
    before = {name: dict(entry.branches) for name, entry in local_hub.store.repositories.items()}
    assert expected in refusal(push(local_hub.env(token=token), result, "user/aligned"))
    assert {name: dict(entry.branches) for name, entry in local_hub.store.repositories.items()} == before
    assert local_hub.uploads() == 0


@pytest.mark.parametrize("name", ["aligned", "a/b/c", "user/re po", "user/x--y", "user/aligned@", "user/a@..", ""])
@pytest.mark.parametrize("dry_run", [False, True], ids=["push", "dry"])
def test_invalid_names(name, dry_run, result):
    with pytest.raises(BadInputError, match="is no name of a repository"):
        push_folder(result, name, dry_run=dry_run)


def test_an_invalid_name_asks_nobody(result, local_hub):
    assert "'aligned' is no name of a repository" in refusal(push(local_hub.env(token=OWNER), result, "aligned"))
    assert not local_hub.requests


def test_two_revisions_and_an_invalid_one(result):
    with pytest.raises(BadInputError, match="name two branches"):
        push_folder(result, "user/aligned@v1", revision="v2", dry_run=True)
    with pytest.raises(BadInputError, match="branch, a tag or a commit"):
        push_folder(result, "user/aligned", revision="a b", dry_run=True)
    assert push_folder(result, "user/aligned@v1", revision="v1", dry_run=True).revision == "v1"


def test_offline_and_no_connection(result, local_hub):
    offline = refusal(push(local_hub.env(token=OWNER, HF_HUB_OFFLINE="1"), result, "user/aligned"))
    assert "user/aligned cannot be reached: HF_HUB_OFFLINE is set; unset" in offline
    down = refusal(push(local_hub.env(token=OWNER, HF_ENDPOINT="http://127.0.0.1:9"), result, "user/aligned"))
    assert "user/aligned: no connection to http://127.0.0.1:9" in down


def test_what_is_no_result_is_refused(hub_base, tmp_path):
    with pytest.raises(BadInputError, match="not a result of alignez-bake"):
        push_folder(hub_base, "user/base", dry_run=True)
    with pytest.raises(BadInputError, match="no such result folder"):
        push_folder(tmp_path / "none", "user/base", dry_run=True)


@pytest.mark.parametrize("how", ["failed", "inconclusive", "name"])
def test_a_result_that_did_not_pass_is_refused(how, copy):
    if how == "name":
        copy = copy.rename(copy.with_name("aligned.failed"))
    else:
        path = copy / "alignez" / "certificate.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": how}))
    with pytest.raises(BadInputError, match="did not pass its certificate"):
        push_folder(copy, "user/aligned", dry_run=True)


def test_a_result_without_certificate_is_refused(copy):
    (copy / "alignez" / "certificate.json").unlink()
    with pytest.raises(BadInputError, match=r"certificate\.json is missing"):
        push_folder(copy, "user/aligned", dry_run=True)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


HUB_BASE = {"repo": "user/base", "commit": "0" * 40}


def test_places_of_this_machine_are_noted_before_they_are_published(result, copy, local_hub):
    shown = push(local_hub.env(HF_ENDPOINT="http://127.0.0.1:9"), result, "user/aligned", "--dry-run")
    assert "Note: alignez/alignez.json names the base by a path on this machine" in " ".join(shown.out.split())
    pushed = push(local_hub.env(token=OWNER), result, "user/aligned", "--json").json
    (note,) = pushed["notes"]
    recorded = json.loads((result / "alignez" / "alignez.json").read_text())["base"]["path"]
    assert repr(recorded) in note
    change_json(copy / "alignez" / "alignez.json", base=HUB_BASE)
    assert push_result(copy, "user/aligned", dry_run=True).notes == ()


def test_an_adapter_of_a_folder_is_noted(hub_base, tmp_path, monkeypatch):
    out = tmp_path / "adapter"
    bake(hub_base, plan_for(hub_base), out, artefact="adapter")

    def notes():
        return push_result(out, "user/adapter", dry_run=True).notes

    assert [note.split()[0] for note in notes()] == ["alignez/alignez.json", "adapter_config.json"]
    assert repr(str(hub_base)) in notes()[1]
    config = out / "adapter_config.json"
    change_json(config, base_model_name_or_path="user/base")
    assert len(notes()) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "base").mkdir(parents=True)
    assert len(notes()) == 2, "two parts of a path look like a name of the hub"
    change_json(out / "alignez" / "alignez.json", base=HUB_BASE)
    assert notes() == (), "the record says that it is one"
    change_json(config, base_model_name_or_path=None)
    assert len(notes()) == 1


def test_a_card_that_the_hub_refuses(copy, local_hub):
    (copy / "README.md").write_text("---\nbase_model: a folder of mine\n---\n# Card\n")
    line = refusal(push(local_hub.env(token=OWNER), copy, "user/aligned"))
    assert "not a valid model id" in line
    assert in_hub(local_hub, "user/aligned") == {}


def test_the_suite_is_the_same_offline(result, local_hub, monkeypatch):
    """What is set outside does not reach the client's process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert push(local_hub.env(token=OWNER), result, "user/aligned").status == 0
