"""Exit statuses, the one error line, and help."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import typer

import alignez_bake
from alignez_bake.cli import shell
from alignez_bake.cli.choices import parse_weights, unescaped
from alignez_bake.cli.main import build_app
from alignez_bake.edit_file import write_edits
from alignez_bake.errors import BadInputError, CheckFailedError
from tests.baking import nothing_written, plan_for

COMMANDS = ("pairs", "fit", "bake", "explain", "verify", "compare", "inspect")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_of_every_command_shows_its_examples(command, cli):
    ran = cli(*command, "--help")
    assert ran.status == 0
    assert not ran.errors
    text = ran.out.split("Examples:")[1]
    assert f"\n    alignez-bake {' '.join(command) or '--model base'}" in text
    assert cli(*command, "-h").out == ran.out


def test_help_lists_every_command(cli):
    listed = [line.split()[0] for line in cli("--help").out.split("Commands:")[1].splitlines()[1:8]]
    assert sorted(listed) == sorted(COMMANDS)
    assert set(COMMANDS) < set(alignez_bake.__all__)


def test_version(cli):
    assert cli("--version").out == f"{alignez_bake.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--model BASE is missing"),
        (("--model", "base"), "--out OUT is missing"),
        (("bake", "--model", "base"), "Missing option '--edits'"),
        (("verify",), "Missing argument 'OUT'"),
        (("inspect", "a", "b"), "unexpected extra argument"),
        (("bakes",), "No such command 'bakes'"),
        (("--modle", "base"), "No such option: --modle"),
        (("--model", "base", "--out", "out", "--seed", "x"), "Invalid value for '--seed'"),
        (("--model",), "requires an argument"),
        (("eval", "--model", "base"), "Missing option '--aligned'"),
        (("explain", "--model", "base", "--queries", "q.txt"), "--queries is for --feasibility"),
        # Options of the whole way would be dropped in silence before a command.
        (("--model", "base", "explain"), "--model stands before the command 'explain'"),
        (("--json", "inspect", "x"), "--json stands before the command 'inspect'"),
        (("--batch-size", "3", "pairs", "--model", "base", "--out", "x"), "--batch-size stands before"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments, message, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with nothing_written(tmp_path):
        ran = cli(*arguments)
    assert ran.status == 2
    assert ran.out == ""
    (line,) = ran.errors
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--as", "onnx", "--opset", "19"), "--opset 19 cannot be written: use 20 to 23"),
        (("--as", "gguf", "--int4"), "--as gguf has no use for --int4 and --int8"),
        (("--as", "onnx", "--int4", "--int8"), "--int4 and --int8 are two widths of the same weights"),
        (("--push", "mine"), "'mine' is no name of a repository"),
        (("--as", "zip"), "--as 'zip' is unknown"),
        (("--method", "auto"), "12 queries are too few to choose an edit: 16 are needed"),
        (("--method", "auto", "--strength", "2"), "--strength 2.0 means something else for each method"),
        (("--method", "auto", "--gated"), "--gated belongs to a method that is named"),
        (("--method", "auto", "--top-layers", "2"), "--top-layers belongs to a method that is named"),
        (("--method", "auto", "--kl-budget", "0"), "--kl-budget 0 must be a number of nats per token above 0"),
        (("--method", "auto", "--kl-budget", "nan"), "--kl-budget nan must be a number of nats per token above 0"),
        (("--method", "auto", "--neutral", "nowhere.txt"), "no such file of neutral texts: nowhere.txt"),
        (("--kl-budget", "0.1"), "--kl-budget 0.1 belongs to the choice of an edit"),
        (("--neutral", "nowhere.txt"), "no such file of neutral texts: nowhere.txt"),
        (("--method", "svd"), "method 'svd' is unknown"),
        (("--method", "ccs", "--top-layers", "most"), "top layers 'most' is neither a number of layers nor auto"),
        (("--strength", "auto"), "12 queries are too few to choose an edit: 16 are needed"),
        (("--strength", "much"), "--strength 'much' is no number"),
        (("--strength", "nan"), "must be finite"),
        (("--strength", "1e999"), "must be finite"),
        (("--dtype", "int8"), "--dtype 'int8' is unknown"),
        (("--device", "tpu"), "device 'tpu' is not there"),
        (("--batch-size", "0"), "batch"),
        (("--prompt-template", "none"), "must hold it once"),
        (("--objective", "kind"), "kind"),
        (("--objective", "helpful=much"), "weight 'much' of objective 'helpful'"),
    ],
)
def test_bad_values_of_the_whole_way(arguments, message, cli, whole_way, tmp_path, cli_base):
    with nothing_written(tmp_path, cli_base):
        ran = cli(*whole_way, *arguments, "--out", tmp_path / "out")
    assert ran.status == 2, ran.errors
    assert ran.out == ""
    assert ran.errors[-1].startswith("error: ")
    assert message in ran.errors[-1]


def app_that(error):
    app = typer.Typer()

    @app.command()
    def work() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (BadInputError("two\nlines"), 2, "error: two lines"),
        (CheckFailedError("failed"), 1, "error: failed"),
        (KeyboardInterrupt(), 130, "error: interrupted; nothing half-written is left, and the same command goes on"),
        (typer.Abort(), 130, "error: interrupted; nothing half-written is left, and the same command goes on"),
        (ZeroDivisionError("oh"), 3, "error: internal error, please report it: ZeroDivisionError: oh"),
    ],
)
def test_exit_statuses(error, status, line, capsys):
    assert shell.run(app_that(error), []) == status
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1] == line
    assert ("Traceback" in errors) == (status == 3)


def test_a_real_process_leaves_with_the_status(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "alignez_bake", "inspect", str(tmp_path / "nothing")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_json_is_one_document_also_where_a_check_fails(cli, tmp_path, tiny_folder):
    base = tiny_folder("llama")
    write_edits(plan_for(base).scaled(0.0), tmp_path / "edits.safetensors")
    ran = cli("bake", "--model", base, "--edits", tmp_path / "edits.safetensors", "--out", tmp_path / "out", "--json")
    assert ran.status == 1
    assert ran.json["verdict"] == "inconclusive"
    assert ran.json["out"] == str(tmp_path / "out.failed")
    assert ran.errors[-1].startswith("error: the certificate is inconclusive")


def test_dials():
    assert parse_weights(None) is None
    assert parse_weights("helpful=1, humor=-0.3,kind") == {"helpful": 1.0, "humor": -0.3, "kind": 1.0}
    for text in ("", "=1", "a=b", "a=nan", "a=1,a=2", "a=inf", "a=1,"):
        with pytest.raises(BadInputError):
            parse_weights(text)


def test_line_breaks_of_a_template():
    assert unescaped("Human: {query}\\nAssistant:") == "Human: {query}\nAssistant:"
    assert unescaped(None) is None


def test_results_are_json_without_infinities(capsys):
    class Result:
        def to_json(self):
            return {"é": 1.5}

    shell.show(Result(), as_json=True, tables=list)
    assert json.loads(capsys.readouterr().out) == {"é": 1.5}


def test_an_interruption_that_a_library_turns_into_an_error_is_still_one(monkeypatch, capsys, tmp_path):
    import alignez_bake.commands.inspect as command

    def interrupted(_path, **_settings):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("assertion failed somewhere inside") from None

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(command, "inspect", interrupted)
    assert shell.run(build_app(), ["inspect", str(tmp_path)]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted")
    assert signal.getsignal(signal.SIGINT) is before
