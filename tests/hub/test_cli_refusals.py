"""What the command line does where a base does not come from the hub, or a result does not go there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from alignez_bake.edit_file import write_edits
from tests.baking import nothing_written, plan_for
from tests.hub.command_line import CLOSED, Filled, cli, filled_hub, in_hub, refusal
from tests.hub.conftest import files_of
from tests.hub.local_hub import OWNER, READER, STRANGER

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Iterator[Filled]:
    """Never take anything away from it; what tests push has names of its own."""
    with filled_hub(tmp_path_factory.mktemp("filled")) as filled:
        yield filled


@pytest.mark.parametrize(
    ("model", "token", "says"),
    [
        ("user/base@nowhere", OWNER, "user/base has no revision 'nowhere': name a branch, tag or commit"),
        ("user/gated", None, "user/gated is gated, and there is no token"),
        ("user/gated", STRANGER, "user/gated is gated, and your token's account is not on its list"),
        ("user/missing", OWNER, "no such repository on the hub: user/missing"),
        ("user/edits", None, "user/edits is no model: it has no config.json"),
    ],
)
def test_a_base_that_the_hub_does_not_give(model, token, says, filled, tmp_path):
    if "user/gated" not in filled.hub.store.repositories:
        filled.hub.store.add("user/gated", files_of(filled.base), gated=True)
    with nothing_written(tmp_path):
        arguments = ("--model", model, "--edits", filled.edits, "--out", tmp_path / "new" / "out")
        ran = cli(filled.hub.env(token=token), "bake", *arguments)
    assert says in refusal(ran)
    assert ran.out == ""


def test_offline_with_and_without_a_cached_base(filled, tmp_path):
    model = ("--model", f"user/base@{filled.old}")
    assert cli(filled.hub.env(home="warm"), "explain", *model).status == 0
    before = len(filled.hub.requests)
    bake = ("bake", *model, "--edits", filled.edits, "--out", tmp_path / "out")
    ran = cli(filled.hub.env(home="warm", HF_HUB_OFFLINE="1"), *bake, "--json")
    assert ran.status == 0, ran.errors
    assert ran.json["verdict"] == "passed"
    cold = refusal(cli(filled.hub.env(home="cold", HF_HUB_OFFLINE="1"), *bake))
    assert f"user/base@{filled.old} cannot be reached: HF_HUB_OFFLINE is set" in cold
    offline = cli(filled.hub.env(home="warm", HF_HUB_OFFLINE="1"), "push", tmp_path / "out", "user/offline")
    assert "user/offline cannot be reached: HF_HUB_OFFLINE is set; unset" in refusal(offline)
    assert len(filled.hub.requests) == before


# --- pushes that do not happen ------------------------------------------------------------------------------


@pytest.fixture
def bake(filled):
    """The arguments of a quick bake of a folder, but for --out."""
    return ("bake", "--model", filled.base, "--edits", filled.edits)


def test_a_failed_certificate_uploads_nothing(bake, filled, tmp_path):
    """Edits far below what bfloat16 resolves: rounding loses them."""
    plan = plan_for(filled.base, scale=1e-4)
    write_edits(plan, tmp_path / "small.safetensors")
    before = len(filled.hub.requests)
    arguments = (*bake[:3], "--edits", tmp_path / "small.safetensors", "--dtype", "bfloat16")
    push = ("--push", "user/failed", "--json")
    ran = cli(filled.hub.env(token=OWNER), *arguments, "--out", tmp_path / "out", *push)
    assert "the certificate is failed" in refusal(ran, status=1)
    assert ran.json["verdict"] == "failed"
    assert "push" not in ran.json
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed", "small.safetensors"]
    assert len(filled.hub.requests) == before
    line = refusal(cli(filled.hub.env(token=OWNER), "push", tmp_path / "out.failed", "user/failed"))
    assert "did not pass its certificate" in line


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "user/mine cannot be written without a token: log in with `hf auth login`, or set HF_TOKEN"),
        (READER, "user/mine: your token may not write to it"),
    ],
)
def test_a_refused_push_leaves_the_result_and_says_how_to_send_it(token, says, bake, filled, tmp_path):
    out = tmp_path / "out"
    ran = cli(filled.hub.env(token=token), *bake, "--out", out, "--push", "user/mine", "--json")
    line = refusal(ran)
    assert says in line
    assert line.endswith(f"; the result is complete in {out}: `alignez-bake push {out} user/mine` sends it")
    assert ran.json["verdict"] == "passed"
    assert "push" not in ran.json
    assert "user/mine" not in filled.hub.store.repositories
    dry = cli(filled.hub.env(HF_ENDPOINT=CLOSED), "push", out, "user/mine", "--dry-run", "--json")
    assert dry.status == 0, dry.errors
    assert {entry["name"] for entry in dry.json["files"]} == set(files_of(out))
    assert dry.json["commit"] is None


@pytest.mark.parametrize("command", ["bake", "whole way"])
def test_a_name_that_cannot_be_is_refused_before_the_work(command, bake, filled, tmp_path):
    arguments = bake if command == "bake" else ("--model", "user/base")
    before = len(filled.hub.requests)
    with nothing_written(tmp_path):
        ran = cli(filled.hub.env(token=OWNER), *arguments, "--out", tmp_path / "out", "--push", "no-slash")
    assert "'no-slash' is no name of a repository: it must be user/repo" in refusal(ran)
    assert len(filled.hub.requests) == before


def test_a_dry_run_with_a_push_sends_nothing(bake, filled, tmp_path):
    with nothing_written(tmp_path):
        env = filled.hub.env(token=OWNER, HF_ENDPOINT=CLOSED)
        ran = cli(env, *bake, "--out", tmp_path / "out", "--push", "user/dry", "--dry-run")
    assert ran.status == 0, ran.errors
    assert "Dry run: nothing was written" in ran.out


def test_a_push_is_told_in_words(bake, filled, tmp_path):
    ran = cli(filled.hub.env(token=OWNER), *bake, "--out", tmp_path / "out", "--push", "user/words@draft")
    assert ran.status == 0, ran.errors
    assert f"Pushed to {filled.hub.url}/user/words" in ran.out
    assert set(filled.hub.store.repositories["user/words"].branches) == {"main", "draft"}
    assert in_hub(filled.hub, "user/words") == {}
