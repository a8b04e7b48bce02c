"""`alignez-bake compare`."""

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

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    '  alignez-bake compare --aligned aligned --prompt "How do I clean a copper pot?"\n'
    "  alignez-bake compare --aligned aligned --model base --temperature 1\n"
)


def compare_command(
    *,
    aligned: Annotated[Path, typer.Option("--aligned", metavar="OUT", help="A result folder.")],
    model: options.OptionalModel = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="A query; can be given many times. Some shipped ones if left out."
        ),
    ] = None,
    prompt_template: options.PromptTemplate = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Most tokens of an answer.")
    ] = 100,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", help="0 is greedy.")] = 0.0,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 16,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Base and aligned model answer the same prompts, side by side."""
    from alignez_bake.commands.compare import compare  # noqa: PLC0415 - so that --help is quick

    result = compare(
        aligned,
        model,
        prompts=prompt or (),
        prompt_template=unescaped(prompt_template),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        device=resolved_device(device),
        batch_size=batch_size,
        seed=seed,
        trust_remote_code=trust_remote_code,
        progress=RichProgress(),
    )

    def tables() -> list[Table | str]:
        from alignez_bake.report.tables import table  # noqa: PLC0415

        rows = ((answer.prompt, answer.base, answer.aligned) for answer in result.answers)
        return [table("Answers", ("prompt", "base", "aligned"), rows)]

    show(result, as_json=json, tables=tables)
