"""The entry point of the command line."""

from __future__ import annotations

import sys

import typer

from alignez_bake.cli.align import EXAMPLES as ALIGN_EXAMPLES
from alignez_bake.cli.align import align_command
from alignez_bake.cli.bake import EXAMPLES as BAKE_EXAMPLES
from alignez_bake.cli.bake import bake_command
from alignez_bake.cli.compare import EXAMPLES as COMPARE_EXAMPLES
from alignez_bake.cli.compare import compare_command
from alignez_bake.cli.eval import EXAMPLES as EVAL_EXAMPLES
from alignez_bake.cli.eval import eval_command
from alignez_bake.cli.explain import EXAMPLES as EXPLAIN_EXAMPLES
from alignez_bake.cli.explain import explain_command
from alignez_bake.cli.fit import EXAMPLES as FIT_EXAMPLES
from alignez_bake.cli.fit import fit_command
from alignez_bake.cli.inspect import EXAMPLES as INSPECT_EXAMPLES
from alignez_bake.cli.inspect import inspect_command
from alignez_bake.cli.pairs import EXAMPLES as PAIRS_EXAMPLES
from alignez_bake.cli.pairs import pairs_command
from alignez_bake.cli.push import EXAMPLES as PUSH_EXAMPLES
from alignez_bake.cli.push import push_command
from alignez_bake.cli.restore import EXAMPLES as RESTORE_EXAMPLES
from alignez_bake.cli.restore import restore_command
from alignez_bake.cli.shell import run
from alignez_bake.cli.verify import EXAMPLES as VERIFY_EXAMPLES
from alignez_bake.cli.verify import verify_command


def build_app() -> typer.Typer:
    """The command line; built when it is needed."""
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True, epilog=ALIGN_EXAMPLES)(align_command)
    for name, command, examples in (
        ("pairs", pairs_command, PAIRS_EXAMPLES),
        ("fit", fit_command, FIT_EXAMPLES),
        ("bake", bake_command, BAKE_EXAMPLES),
        ("explain", explain_command, EXPLAIN_EXAMPLES),
        ("verify", verify_command, VERIFY_EXAMPLES),
        ("compare", compare_command, COMPARE_EXAMPLES),
        ("inspect", inspect_command, INSPECT_EXAMPLES),
        ("push", push_command, PUSH_EXAMPLES),
        ("restore", restore_command, RESTORE_EXAMPLES),
        ("eval", eval_command, EVAL_EXAMPLES),
    ):
        app.command(name, epilog=examples)(command)
    return app


def main() -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run(build_app(), sys.argv[1:]))
