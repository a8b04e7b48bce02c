"""`alignez-bake eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.choices import unescaped
from alignez_bake.cli.shell import resolved_device, show
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.commands.evaluate import EvalResult

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake eval --model base --aligned aligned --queries heldout.jsonl --judge rules.py:judge\n"
    "  alignez-bake eval --model base --aligned aligned --queries heldout.jsonl --judge reward_model --out report\n"
    "  alignez-bake eval --model base --aligned aligned --queries heldout.txt --judge http://localhost:8000/v1 "
    "--judge-model NAME --out report\n"
)


def eval_command(
    *,
    model: options.Model,
    aligned: Annotated[Path, typer.Option("--aligned", metavar="OUT", help="A result, or another model or graph.")],
    queries: Annotated[
        Path,
        typer.Option("--queries", metavar="F", help="Held-out queries, with the keys that the judge needs."),
    ],
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="JUDGE",
            help="rules.py:function (of query and answer, from -1 to 1, good above 0); the folder of a classifier or "
            "reward model; or the address of an OpenAI-compatible server, such as http://localhost:8000/v1.",
        ),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option("--tuned", metavar="DIR", help="A tuned model, the yardstick: how much of the gap is closed?"),
    ] = None,
    judge_threshold: Annotated[
        float | None,
        typer.Option(
            "--judge-threshold",
            metavar="X",
            help="Score above which an answer is good: 0 of rules and rewards, 0.5 of probabilities if left out.",
        ),
    ] = None,
    judge_label: Annotated[
        str | None, typer.Option("--judge-label", metavar="LABEL", help="Classifier: the label of good answers.")
    ] = None,
    judge_reads: Annotated[
        str | None,
        typer.Option("--judge-reads", metavar="WHAT", help="Classifier: both (query and answer), or answer alone."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", metavar="NAME", help="Server: which of its models judges.")
    ] = None,
    judge_criterion: Annotated[
        str | None,
        typer.Option(
            "--judge-criterion", metavar="TEXT", help="Server: the better answer is, such as 'more truthful'."
        ),
    ] = None,
    judge_key_env: Annotated[
        str | None,
        typer.Option(
            "--judge-key-env",
            metavar="VARIABLE",
            help="Server: environment variable that holds its key; none is sent if left out.",
        ),
    ] = None,
    judge_tries: Annotated[
        int | None, typer.Option("--judge-tries", metavar="N", help="Server: most tries of one question; 6.")
    ] = None,
    judge_timeout: Annotated[
        float | None, typer.Option("--judge-timeout", metavar="SECONDS", help="Server: of one try; 120.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for eval.json, eval.md, eval.svg and all answers; makes a run resumable.",
        ),
    ] = None,
    neutral: Annotated[
        Path | None,
        typer.Option(
            "--neutral",
            metavar="F.txt",
            help="Texts that the edit should leave alone, one a line, or JSON lines with 'text', for perplexity and "
            "KL; shipped ones if left out.",
        ),
    ] = None,
    prompt_template: options.PromptTemplate = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="Answers of each model to each query.")] = 1,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Most tokens of an answer.")
    ] = 200,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", help="0 is greedy.")] = 1.0,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    yes: options.Yes = False,
) -> None:
    """Base, aligned and tuned model answer held-out queries; a judge says how much of the gap is closed."""
    del yes  # nothing is asked here
    from alignez_bake.commands.evaluate import evaluate  # noqa: PLC0415 - so that --help is quick
    from alignez_bake.evaluation.judge_kinds import JudgeOptions  # noqa: PLC0415

    result = evaluate(
        model,
        aligned,
        queries,
        judge=judge,
        judge_options=JudgeOptions(
            threshold=judge_threshold,
            label=judge_label,
            reads=judge_reads,
            model=judge_model,
            criterion=judge_criterion,
            key_env=judge_key_env,
            tries=judge_tries,
            timeout=judge_timeout,
        ),
        tuned=tuned,
        out=out,
        neutral=neutral,
        prompt_template=unescaped(prompt_template),
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        device=resolved_device(device),
        trust_remote_code=trust_remote_code,
        dry_run=dry_run,
        progress=RichProgress(),
    )
    show(result, as_json=json, tables=lambda: _tables(result))


def _tables(result: EvalResult) -> list[Table | str]:
    from alignez_bake.evaluation import report  # noqa: PLC0415
    from alignez_bake.report.tables import table  # noqa: PLC0415

    found = result.figures
    notes: list[Table | str] = [f"Note: {note}." for note in result.notes]
    if found is None:
        planned = f"{result.settings['queries']} queries, {result.settings['samples']} answers of each model to each"
        paths = table("Would be evaluated", ("model", "folder"), result.paths.items())
        return [paths, f"{planned}.", *notes, "Dry run: nothing was run or written."]
    shown: list[Table | str] = [table("Models", report.MODEL_COLUMNS, report.model_rows(found, result.drift))]
    shown.append(table("Answer by answer", report.PAIR_COLUMNS, report.pair_rows(found)))
    if found.gap is not None:
        shown.append(report.gap_line(found.gap, found.gap_of))
    shown += [*report.judge_lines(found, result.judge), *notes]
    if result.out is not None:
        shown.append(f"Written to {result.out}.")
    return shown
