"""One edit file in every format, through the command line: bake, verify, inspect, compare, and bake again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from alignez_bake.commands import align as align_module
from alignez_bake.edit_file import write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.model_folder import open_model_folder
from tests.baking import contents, nothing_written
from tests.commands.small_bakes import edits_at

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "base"
FILES = {
    "adapter": {"adapter_config.json", "adapter_model.safetensors"},
    "gguf": {"adapter.gguf"},
    "onnx": {"model.onnx", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"},
    "edits": {"edits.safetensors"},
}
certified_shortly = pytest.mark.usefixtures("short_certificates")
LEVELS = {"onnx": ["tensors", "forward"], "adapter": ["tensors", "forward"], "gguf": ["tensors"], "edits": ["tensors"]}


@pytest.fixture(scope="module")
def edits(cli_base, tmp_path_factory) -> dict[str, Path]:
    """Files of edits that fold, and of edits that do not."""
    folder = tmp_path_factory.mktemp("edits")
    fingerprint = open_model_folder(cli_base).fingerprint
    plans = {
        "linear": edits_at(cli_base, "attn_write", objective="helpful"),
        "gated": edits_at(cli_base, "mlp_write", gate="relu", objective="helpful"),
        "last": edits_at(cli_base, "mlp_write", positions="last"),
    }
    for name, made in plans.items():
        write_edits(EditPlan(tuple(made), base=fingerprint), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in plans}


@pytest.fixture
def bake(cli, cli_base, edits):
    """`bake(name, out, *arguments) -> Ran`."""

    def run(name: str, out: Path, *arguments: object):
        return cli("bake", "--model", cli_base, "--edits", edits[name], "--out", out, "--device", "cpu", *arguments)

    return run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What `baked` has made, by format, and where the next one goes."""
    return {}, tmp_path_factory.mktemp("results")


@pytest.fixture
def baked(bake, results):
    """`baked(artefact) -> Ran, out`: the linear edits in a format, made once: a graph takes long. Never write there."""
    made, folder = results

    def once(artefact: str):
        if artefact not in made:
            ran = bake("linear", folder / artefact, "--as", artefact, "--json")
            assert ran.status == 0, ran.errors
            made[artefact] = ran
        return made[artefact], folder / artefact

    return once


@certified_shortly
@pytest.mark.parametrize("artefact", FILES)
def test_a_format_is_baked_verified_and_inspected(artefact, baked, cli):
    ran, out = baked(artefact)
    assert ran.json["verdict"] == "passed"
    assert [entry["route"] for entry in ran.json["decisions"]] == ["carry" if artefact == "edits" else "fold"] * 2
    top = {path.name for path in out.iterdir()}
    assert top == FILES[artefact] | {"README.md", "alignez"}

    ran = cli("verify", out, "--device", "cpu", "--json")
    assert ran.status == 0, ran.errors
    assert list(ran.json["certificate"]) == LEVELS[artefact]
    assert ran.json["verdict"] == "passed"

    ran = cli("inspect", out, "--json")
    assert ran.status == 0, ran.errors
    assert ran.json["record"]["artefact"] == artefact
    assert [(edit["site"], edit["rank"]) for edit in ran.json["edits"]] == [("attn_write.0", 2), ("attn_write.1", 2)]
    ran = cli("inspect", out)
    assert ran.status == 0
    assert "attn_write.1" in ran.out


@pytest.mark.parametrize("artefact", ["gguf", "edits"])
def test_what_does_not_run_here_is_not_verified_by_running(artefact, bake, cli, tmp_path):
    with nothing_written(tmp_path):
        ran = bake("linear", tmp_path / "out", "--as", artefact, "--verify", "forward")
    assert ran.status == 2
    message = f"error: a result of --as {artefact} does not run here, so it cannot be verified at level 'forward'"
    assert ran.errors[-1].startswith(message)
    assert bake("linear", tmp_path / "out", "--as", artefact).status == 0
    ran = cli("verify", tmp_path / "out", "--level", "forward")
    assert ran.status == 2
    assert ran.errors[-1].startswith(message)
    ran = cli("compare", "--aligned", tmp_path / "out", "--prompt", "pot", "--device", "cpu")
    assert ran.status == 2
    assert ran.errors[-1].startswith("error: ")
    assert "Traceback" not in "\n".join(ran.errors)


def answers(cli, out: Path, *arguments: object) -> list[tuple[str, str]]:
    ran = cli("compare", "--aligned", out, "--prompt", "pot 1?", "--prompt", "a kettle", "--device", "cpu", "--json",
              "--max-new-tokens", "16", *arguments)  # fmt: skip
    assert ran.status == 0, ran.errors
    return [(answer["base"], answer["aligned"]) for answer in ran.json["answers"]]


def test_an_adapter_answers_as_the_checkpoint_does(bake, cli, tmp_path):
    assert bake("linear", tmp_path / "adapter", "--as", "adapter", "--verify", "forward").status == 0
    assert bake("linear", tmp_path / "folded").status == 0
    found = answers(cli, tmp_path / "adapter")
    assert found == answers(cli, tmp_path / "folded")
    assert all(before != after for before, after in found)


@certified_shortly
def test_an_inserted_result_goes_through_every_command(bake, cli, cli_base, tmp_path):
    out = tmp_path / "out"
    ran = bake("gated", out)
    assert ran.status == 2
    assert ran.errors[-1].startswith("error: 2 of 2 edits cannot be baked as checkpoint: mlp_write.0, mlp_write.1: ")
    assert ran.errors[-1].endswith("--as can carry them: checkpoint --trust-remote-code, onnx, edits")
    ran = bake("gated", out, "--trust-remote-code", "--require-fold")
    assert ran.status == 2
    assert not out.exists()
    ran = bake("gated", out, "--trust-remote-code", "--verify", "forward", "--objective", "helpful=0.7", "--json")
    assert ran.status == 0, ran.errors
    assert {entry["route"] for entry in ran.json["decisions"]} == {"insert"}
    ran = cli("verify", out, "--device", "cpu", "--json")
    assert (ran.status, list(ran.json["certificate"])) == (0, ["tensors", "forward"])
    assert all(before != after for before, after in answers(cli, out))
    ran = cli("inspect", out, "--json")
    assert ran.json["weights"] == {"helpful": 0.7}
    assert {edit["gate"] for edit in ran.json["edits"]} == {"relu"}
    ran = cli("explain", "--model", cli_base, "--edits", out / "alignez" / "edits.safetensors", "--json")
    assert {entry["route"] for entry in ran.json["decisions"]} == {"insert"}
    card = (out / "README.md").read_text()
    assert "trust_remote_code=True" in card


@pytest.mark.parametrize("artefact", FILES)
def test_the_folder_of_a_result_is_a_file_of_edits(artefact, bake, cli, cli_base, tmp_path):
    # The edits in it are looked at, so it need not run.
    level = ("--verify", "tensors")
    assert bake("linear", tmp_path / "first", "--as", artefact, "--objective", "helpful=0.5", *level).status == 0
    model = ("--model", cli_base, "--device", "cpu")
    ran = cli("bake", *model, "--edits", tmp_path / "first", "--out", tmp_path / "second")
    assert ran.status == 0, ran.errors
    assert bake("linear", tmp_path / "direct", "--objective", "helpful=0.5").status == 0
    assert contents(tmp_path / "second")["model.safetensors"] == contents(tmp_path / "direct")["model.safetensors"]


@certified_shortly
def test_edits_carry_what_nothing_else_does(bake, cli, cli_base, tmp_path):
    ran = bake("last", tmp_path / "adapter", "--as", "adapter")
    assert ran.status == 2
    assert "only the last position is edited" in ran.errors[-1]
    assert ran.errors[-1].endswith("--as can carry them: checkpoint --trust-remote-code, onnx, edits")
    assert bake("last", tmp_path / "edits", "--as", "edits").status == 0
    out = tmp_path / "out"
    arguments = ("bake", "--model", cli_base, "--edits", tmp_path / "edits", "--out", out, "--device", "cpu")
    ran = cli(*arguments, "--trust-remote-code", "--verify", "forward", "--json")
    assert ran.status == 0, ran.errors
    # AlignEZ's own rule is what was baked: applied once more it changes nothing.
    assert ran.json["certificate"]["forward"]["last_only_difference"] == 0


@certified_shortly
def test_a_changed_file_of_each_format_fails_with_status_1(baked, cli, tmp_path):
    for artefact, (name, *_) in ((artefact, sorted(FILES[artefact])[::-1]) for artefact in FILES):
        out = tmp_path / artefact
        shutil.copytree(baked(artefact)[1], out)
        data = bytearray((out / name).read_bytes())
        data[-5] ^= 1
        (out / name).write_bytes(bytes(data))
        ran = cli("verify", out, "--level", "tensors")
        assert ran.status == 1, (artefact, ran.errors)
        assert ran.errors[-1].startswith("error: the certificate is failed: ")


def test_a_dry_run_says_the_ways_and_writes_nothing(bake, tmp_path):
    with nothing_written(tmp_path):
        ran = bake("gated", tmp_path / "out", "--trust-remote-code", "--dry-run")
    assert ran.status == 0, ran.errors
    assert "insert" in ran.out
    assert "nothing was written" in ran.out


@certified_shortly
@pytest.mark.parametrize("artefact", ["adapter", "gguf", "onnx", "edits"])
def test_the_whole_way_in_every_format(artefact, cli, whole_way, tmp_path):
    out = tmp_path / "out"
    ran = cli(*whole_way, "--out", out, "--as", artefact, "--json")
    assert ran.status == 0, ran.errors
    assert list(ran.json["certificate"]) == LEVELS[artefact]
    assert FILES[artefact] <= {path.name for path in out.iterdir()}
    assert json.loads((out / "alignez" / "alignez.json").read_text())["provenance"]["method"] == "ridge"
    assert cli("verify", out, "--level", "tensors").status == 0


@pytest.fixture
def agreeing_pairs(monkeypatch):
    """Answers of the whole way that end in one word if good and in another if bad.

    A tiny model's own answers agree in sign along no direction, so that AlignEZ's second version finds nothing.
    """
    generated = align_module.write_own_pairs

    def write(*arguments, **settings):
        pairs, limits = generated(*arguments, **settings)
        ends = {"good": "water", "bad": "no"}
        records = [
            replace(record, answer=f" {number} pots {ends[record.side]}") for number, record in enumerate(pairs.records)
        ]
        return replace(pairs, records=records), limits

    monkeypatch.setattr(align_module, "write_own_pairs", write)


GATED = ("--method", "alignez_v2", "--gated", "--top-layers", "1")


@certified_shortly
@pytest.mark.usefixtures("agreeing_pairs")
def test_the_whole_way_with_alignezs_own_semantics(cli, whole_way, tmp_path):
    """Gates and the last position: refused at once without code, else inserted and certified by running."""
    out = tmp_path / "out"
    with nothing_written(tmp_path):
        ran = cli(*whole_way, "--out", out, *GATED, "--positions", "last")
    assert ran.status == 2
    assert "--trust-remote-code" in ran.errors[-1]
    ran = cli(*whole_way, "--out", out, *GATED, "--positions", "last", "--trust-remote-code", "--json")
    assert ran.status == 0, ran.errors
    assert {entry["route"] for entry in ran.json["decisions"]} == {"insert"}
    assert list(ran.json["certificate"]) == ["tensors", "forward"]
    # Already AlignEZ's own rule: applied to the last row of each call, the hooks change nothing more.
    assert ran.json["certificate"]["forward"]["last_only_difference"] == 0
    edits = cli("inspect", out, "--json").json["edits"]
    assert {(edit["gate"], edit["positions"]) for edit in edits} == {("relu", "last"), ("tanh", "last")}
    assert "chunks" in (out / "README.md").read_text()
    assert cli("verify", out, "--level", "tensors").status == 0


@certified_shortly
@pytest.mark.usefixtures("agreeing_pairs")
def test_the_whole_way_with_gates_made_linear(cli, whole_way, tmp_path, tiny_folder):
    out = tmp_path / "out"
    # With room for the texts that edits are refitted on.
    way = ("--model", tiny_folder("llama"), *whole_way[2:])
    ran = cli(*way, "--out", out, *GATED, "--linearise", "--json")
    assert ran.status == 0, ran.errors
    assert {entry["route"] for entry in ran.json["decisions"]} <= {"fold", "rehome"}
    assert ran.json["refit"]["kind"] == "linearised"
    assert len(ran.json["refit"]["edits"]) == len(ran.json["decisions"]) == 2
    assert not list(out.rglob("*.py"))
    assert {edit["gate"] for edit in cli("inspect", out, "--json").json["edits"]} == {"identity"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there are none without --gated"),
        ([*GATED, "--positions", "last", "--trust-remote-code"], "edits of --positions last fold no better"),
        ([*GATED, "--as", "ggml"], "--as 'ggml' is unknown"),
    ],
)
def test_what_cannot_be_made_linear_is_refused_before_any_pair(arguments, says, cli, whole_way, tmp_path, monkeypatch):
    monkeypatch.setattr(align_module, "load_language_model", lambda *_args, **_settings: pytest.fail("a model ran"))
    with nothing_written(tmp_path):
        ran = cli(*whole_way, "--out", tmp_path / "new" / "out", "--linearise", *arguments)
    assert ran.status == 2
    assert says in ran.errors[-1]


@pytest.mark.sweep
@pytest.mark.parametrize("way", [["--trust-remote-code"], ["--linearise"], ["--refit-block"]])
def test_gated_edits_of_the_demo_model(way, cli, tmp_path):
    """A trained model in bf16, whose activations are those of texts."""
    write_edits(
        EditPlan(tuple(edits_at(DEMO, "mlp_write", layers=range(6), gate="relu"))), tmp_path / "relu.safetensors"
    )
    arguments = ("bake", "--model", DEMO, "--edits", tmp_path / "relu.safetensors", "--out", tmp_path / "out", *way)
    ran = cli(*arguments, "--device", "cpu", "--verify", "forward", "--json")
    assert ran.status == 0, ran.errors
    assert [entry["route"] for entry in ran.json["decisions"]] == ["insert" if "code" in way[0] else "rehome"] * 6
    if "code" not in way[0]:
        assert ran.json["refit"]["kl_original_to_refitted"] < ran.json["refit"]["kl_original_to_base"]
        assert all(entry["explained_variance"] > 0 for entry in ran.json["refit"]["edits"])
