"""The command line as people type it, with a hub behind it: from a base by name to a result by name, and back."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from alignez_bake.errors import BadInputError
from alignez_bake.hub.download import cached_repo
from alignez_bake.hub.repo_id import RepoId
from alignez_bake.report.record import recorded_base
from tests.hub.command_line import CLOSED, Filled, cli, filled_hub, in_hub, refusal
from tests.hub.conftest import Ran, files_of, run_python
from tests.hub.local_hub import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What each kind is called on the hub, and how it is baked.
KINDS = {
    "checkpoint": ("user/edits", "--as", "checkpoint"),
    "inserted": ("user/gated-edits", "--as", "checkpoint", "--trust-remote-code"),
    "adapter": ("user/edits", "--as", "adapter"),
    "edits": ("user/edits", "--as", "edits"),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Iterator[Filled]:
    """Never take anything away from it; what tests push has names of its own."""
    with filled_hub(tmp_path_factory.mktemp("filled")) as filled:
        yield filled


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    """Twelve short queries."""
    path = tmp_path_factory.mktemp("queries") / "queries.txt"
    path.write_text("".join(f"pot {number}?\n" for number in range(12)))
    return path


def card_of(files: dict[str, bytes]) -> dict[str, Any]:
    """The metadata of a pushed model card."""
    return yaml.safe_load(files["README.md"].decode().split("---\n")[1])


def record_of(out: Path) -> dict[str, Any]:
    """What a result says of itself."""
    return json.loads((out / "alignez" / "alignez.json").read_text())


# --- the whole way ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aligned(filled, queries, tmp_path_factory):
    """The result of the whole way from `user/base` to `user/aligned`, and the document that it printed."""
    out = tmp_path_factory.mktemp("whole_way") / "aligned"
    asked = ("--queries", queries, "--prompt-template", "{query}", "--method", "ridge", "--device", "cpu")
    env = filled.hub.env(token=OWNER)
    ran = cli(env, "--model", "user/base", "--out", out, *asked, "--push", "user/aligned", "--json")
    assert ran.status == 0, ran.errors
    return out, ran.json


def test_the_whole_way_pushes_what_it_certified(aligned, filled):
    out, document = aligned
    assert document["verdict"] == "passed"
    assert set(document["certificate"]) == {"tensors", "forward"}
    sent = in_hub(filled.hub, "user/aligned")
    assert sent == files_of(out)
    upload = document["push"]
    assert (upload["repo"], upload["url"]) == ("user/aligned", f"{filled.hub.url}/user/aligned")
    assert upload["commit"] == filled.hub.store.repositories["user/aligned"].branches["main"]
    assert {entry["name"]: entry["bytes"] for entry in upload["files"]} == {name: len(sent[name]) for name in sent}
    card = card_of(sent)
    assert (card["base_model"], card["base_model_relation"]) == ("user/base", "finetune")
    assert (card["license"], card["language"]) == ("apache-2.0", ["en"])


def test_the_record_names_base_and_commit_and_no_place_of_this_machine(aligned, filled):
    out, _ = aligned
    base = record_of(out)["base"]
    assert (base["repo"], base["commit"]) == ("user/base", filled.new)
    assert "path" not in base
    for name in ("README.md", "alignez/alignez.json", "alignez/certificate.json"):
        text = (out / name).read_text()
        assert "snapshots" not in text
        assert filled.hub.folder.parent.name not in text


def test_verify_finds_a_base_of_the_hub_by_itself(aligned, filled, tmp_path):
    out = shutil.copytree(aligned[0], tmp_path / "somewhere" / "else")
    verify = ("verify", out, "--level", "tensors", "--json")
    for env, model in (
        (filled.hub.env(), ()),
        (filled.hub.env(), ("--model", "user/base")),
        (filled.hub.env(HF_HUB_OFFLINE="1"), ()),
        (filled.hub.env(HF_ENDPOINT=CLOSED), ()),
        (filled.hub.env(home="another machine"), ("--model", "user/base")),
    ):
        ran = cli(env, *verify, *model, cwd=tmp_path)
        assert ran.status == 0, ran.errors
        assert ran.json["certificate"]["tensors"] == aligned[1]["certificate"]["tensors"]
    line = refusal(cli(filled.hub.env(), *verify, "--model", f"user/base@{filled.old}"))
    assert "is not the base that" in line


def test_a_record_downloads_nothing(aligned, filled, pushed, tmp_path):
    """Whoever wrote it may name any repository, of any size."""
    named = f"user/base@{filled.new}"
    before = len(filled.hub.requests)
    missing = (
        f"the base of {aligned[0]} is {named} on the hub, which is not in this machine's cache: name it with "
        f"--model {named}"
    )
    tensors = ("--level", "tensors")
    for command in (("verify", aligned[0], *tensors), ("compare", "--aligned", aligned[0])):
        assert missing in refusal(cli(filled.hub.env(home="empty"), *command))
    ran = cli(filled.hub.env(home="empty"), "verify", aligned[0], "--json")
    assert missing in ran.json["manifest"]["not_checked"][0]
    # A base of which the cache has a part is not there either.
    cached = filled.hub.folder / "home" / "hub" / "models--user--base"
    copied = filled.hub.folder / "part" / "hub" / "models--user--base"
    shutil.copytree(cached, copied, symlinks=True)
    (copied / "snapshots" / filled.new / "model.safetensors").unlink()
    assert "not in this machine's cache" in refusal(cli(filled.hub.env(home="part"), "verify", aligned[0], *tensors))
    # A folder of that name is no base of the hub.
    shutil.copytree(filled.base, tmp_path / f"user/base@{filled.old}")
    ran = cli(filled.hub.env(home="empty"), "verify", pushed["edits"][0], *tensors, cwd=tmp_path)
    assert "not in this machine's cache" in refusal(ran)
    assert len(filled.hub.requests) == before


@pytest.mark.parametrize(
    "place",
    [{"repo": "user/base"}, {"repo": "a/b/c"}, {"repo": "user/base", "commit": "a b"}, {"repo": 3, "commit": "c"}],
)
def test_a_record_that_names_no_repository_is_refused(place, result, tmp_path):
    out = shutil.copytree(result, tmp_path / "aligned")
    record = record_of(out)
    record["base"] = {name: value for name, value in record["base"].items() if name != "path"} | place
    (out / "alignez" / "alignez.json").write_text(json.dumps(record))
    with pytest.raises(BadInputError, match="name it with --model BASE"):
        recorded_base(out)


def test_only_a_snapshot_of_the_cache_is_a_base_of_the_hub(tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    cached = tmp_path / "models--user--re.po" / "snapshots" / commit
    assert cached_repo(cached) == RepoId("user/re.po", commit)
    for repo, kind, name in (
        ("models--user--re.po", "other", commit),
        ("models--user--re.po", "snapshots", "main"),
        ("models--user", "snapshots", commit),
        ("models--user--re--po", "snapshots", commit),
        ("datasets--user--re.po", "snapshots", commit),
    ):
        assert cached_repo(tmp_path / repo / kind / name) is None


# --- every kind of artefact ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pushed(filled, tmp_path_factory):
    """Of each kind its result, baked for the older commit of the base and pushed as `user/KIND`, and the document."""
    folder = tmp_path_factory.mktemp("kinds")
    made = {}
    for kind, (edits, *rest) in KINDS.items():
        model = f"user/base@{filled.old}"
        arguments = ("--model", model, "--edits", edits, "--out", folder / kind, *rest, "--push", f"user/{kind}")
        ran = cli(filled.hub.env(token=OWNER), "bake", *arguments, "--json")
        assert ran.status == 0, (kind, ran.errors)
        made[kind] = folder / kind, ran.json
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_pushed_with_its_card(kind, pushed, filled):
    out, document = pushed[kind]
    assert document["verdict"] == "passed"
    sent = in_hub(filled.hub, f"user/{kind}")
    assert sent == files_of(out)
    assert {entry["name"] for entry in document["push"]["files"]} == set(sent)
    card = card_of(sent)
    assert card["base_model"] == "user/base"
    assert card["base_model_relation"] == ("adapter" if kind in ("adapter", "edits") else "finetune")
    base = record_of(out)["base"]
    assert (base["repo"], base["commit"]) == ("user/base", filled.old)


@pytest.mark.parametrize("kind", ["inserted", "edits"])
def test_a_record_leads_to_the_commit_though_main_has_moved_on(kind, pushed, filled):
    ran = cli(filled.hub.env(), "verify", pushed[kind][0], "--level", "tensors", "--json")
    assert ran.status == 0, ran.errors
    assert ran.json["verdict"] == "passed"


def test_pushed_edits_are_baked_again_to_the_same_weights(pushed, filled, tmp_path):
    env = filled.hub.env(home="reader")
    arguments = ("--model", f"user/base@{filled.old}", "--edits", "user/edits", "--out", tmp_path / "again")
    ran = cli(env, "bake", *arguments, "--json")
    assert ran.status == 0, ran.errors
    assert "push" not in ran.json
    weights = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert weights == (pushed["checkpoint"][0] / "model.safetensors").read_bytes()
    assert weights != (filled.base / "model.safetensors").read_bytes()
    line = refusal(cli(env, "bake", "--model", "user/base", "--edits", "user/edits", "--out", tmp_path / "other"))
    assert "made for another base" in line
    assert "other weights" in line


# Of each kind, loaded by its name: logits against the base with hooks, and how far the edit moves the base.
LOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from alignez_bake.edit_file import read_edits
from alignez_bake.hub.download import base_folder, edits_file
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder

old = sys.argv[1]

def load(name, **settings):
    return AutoModelForCausalLM.from_pretrained(name, **settings).eval()

def base():
    return load("user/base", revision=old)

def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits

architecture = open_model_folder(base_folder("user/base@" + old)).architecture
loaded = {
    "checkpoint": (load("user/checkpoint"), "user/edits"),
    "inserted": (load("user/inserted", trust_remote_code=True), "user/gated-edits"),
    "adapter": (PeftModel.from_pretrained(base(), "user/adapter").eval(), "user/edits"),
}
found = {}
for kind, (model, edits) in loaded.items():
    hooked = base()
    with edited_by_hooks(hooked, architecture, read_edits(edits_file(edits))):
        expected = logits(hooked)
    error, moved = ((logits(other) - expected).norm() / expected.norm() for other in (model, base()))
    found[kind] = [float(error), float(moved)]
try:
    load("user/inserted")
except ValueError as error:
    found["without the flag"] = str(error)
print("\\n" + json.dumps(found))  # after the question whether to run code
"""


def test_every_kind_is_loaded_by_its_name(pushed, filled):
    del pushed  # made before
    ran = run_python(filled.hub.env(home="reader"), LOAD, filled.old)
    assert ran.status == 0, ran.errors
    found = json.loads(ran.out.splitlines()[-1])
    assert "trust_remote_code" in found.pop("without the flag"), "never the unedited model in silence"
    assert set(found) == {"checkpoint", "inserted", "adapter"}
    for kind, (error, moved) in found.items():
        assert error <= 1e-5, kind
        assert moved >= 100 * 1e-5, kind


def test_an_adapter_refers_to_its_base_by_name(pushed, filled):
    config = json.loads((pushed["adapter"][0] / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("user/base", filled.old)


# --- names of the hub in the other commands -----------------------------------------------------------------

# Several command lines in one process, because torch takes seconds to import; prints status, output, errors of each.
SEVERAL = """
import contextlib, io, json, sys
from alignez_bake.cli.main import build_app
from alignez_bake.cli.shell import run
ran = []
for words in json.loads(sys.argv[1]):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = run(build_app(), words)
    ran.append((status, out.getvalue(), errors.getvalue().splitlines()))
print(json.dumps(ran))
"""


def test_pairs_fit_inspect_explain_and_compare_take_names(filled, queries, pushed, tmp_path):
    pairs, edits = tmp_path / "pairs.jsonl", tmp_path / "edits.safetensors"
    asked = ("--queries", queries, "--prompt-template", "{query}")
    lines = (
        ("pairs", "--model", "user/base", "--out", pairs, *asked, "--json"),
        ("fit", "--model", "user/base", "--pairs", pairs, "--out", edits, "--method=ridge", "--layers", "1", "--json"),
        ("inspect", "user/edits", "--json"),
        ("explain", "--model", f"user/base@{filled.old}", "--edits", "user/gated-edits", "--json"),
        ("compare", "--aligned", pushed["adapter"][0], "--prompt", "pot 1?", "--max-new-tokens", "4", "--json"),
        ("pairs", "--model", "user/base@nowhere", "--out", tmp_path / "no.jsonl"),
        ("fit", "--model", "user/base@nowhere", "--pairs", pairs, "--out", tmp_path / "no.safetensors"),
        ("compare", "--aligned", pushed["adapter"][0], "--model", "user/base@nowhere"),
        ("inspect", "user/edits@nowhere"),
    )
    words = json.dumps([[str(word) for word in line] for line in lines])
    done = run_python(filled.hub.env(), SEVERAL, words)
    assert done.status == 0, done.errors
    ran = [Ran(*entry) for entry in done.json]
    assert [entry.status for entry in ran] == [0] * 5 + [2] * 4, ran
    made, fitted, inspected, explained, compared = (entry.json for entry in ran[:5])
    assert made["answers"] == 24
    assert fitted["edits"] == 1
    assert [edit["site"] for edit in inspected["edits"]] == ["attn_write.0", "attn_write.1"]
    assert inspected["path"] == "user/edits"
    assert {decision["route"] for decision in explained["decisions"]} == {"insert"}
    assert compared["answers"][0]["prompt"] == "pot 1?"
    for entry in ran[5:]:
        assert "has no revision 'nowhere'" in refusal(entry)
    assert not list(tmp_path.glob("no.*"))
