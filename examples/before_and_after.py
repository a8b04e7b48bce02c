"""Base, aligned and tuned model side by side, on held-out queries: what `make demo` prints at the end.

``python -m examples.before_and_after --aligned out/demo/aligned``
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignez_bake.evaluation.behaviour import JudgedAnswers, judged_answers
from alignez_bake.evaluation.drift import answer_loss, kl_on_texts
from alignez_bake.evaluation.judge import load_judge
from alignez_bake.evaluation.rates import gap_closed
from alignez_bake.language_model.loading import LanguageModel, load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import RichProgress
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import read_queries

if TYPE_CHECKING:
    from alignez_bake.evaluation.rates import Rate

DEMO = Path(__file__).parent / "demo"
JUDGE = Path(__file__).parent / "judge_demo.py"
MIN_ANSWERS = 1000
SHOWN = 5


class Measured(NamedTuple):
    """One model's figures: judged answers, loss per token on good documents, KL from the base in nats per token."""

    judged: JudgedAnswers
    loss: float
    kl: float

    @property
    def rate(self) -> Rate:
        """Share of good answers."""
        return self.judged.good_rate


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.before_and_after", description=__doc__)
    parser.add_argument("--aligned", type=Path, required=True, help="what alignez-bake wrote")
    parser.add_argument("--world", type=Path, default=DEMO, help="folder with base/, tuned/ and the data files")
    parser.add_argument("--judge", default=f"{JUDGE}:judge", help="file.py:function")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128)
    return parser.parse_args()


def measure(lm: LanguageModel, base: LanguageModel, arguments: argparse.Namespace) -> Measured:
    """Judge sampled answers to every held-out query, and measure what else the edit changed."""
    world: Path = arguments.world
    measured = json.loads((world / "measured.json").read_text("utf-8"))
    form = prompt_form(lm.tokenizer, measured.get("prompt_template"))
    queries = read_queries(world / "heldout.jsonl").queries
    judged = judged_answers(
        lm,
        queries,
        load_judge(arguments.judge),
        form,
        samples=-(-MIN_ANSWERS // len(queries)),
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        max_new_tokens=60,
        progress=RichProgress(),
    )
    documents = [json.loads(line) for line in (world / "good_documents.jsonl").read_text("utf-8").splitlines()]
    texts = (world / "neutral.txt").read_text("utf-8").splitlines()
    return Measured(
        judged,
        answer_loss(lm, documents, form, batch_size=arguments.batch_size),
        kl_on_texts(base, lm, texts, form, batch_size=arguments.batch_size),
    )


def main() -> int:
    """Measure, print, and fail unless the aligned model is better than the base beyond both intervals."""
    arguments = parse_arguments()
    folders = {"base": arguments.world / "base", "aligned": arguments.aligned, "tuned": arguments.world / "tuned"}
    base = load_language_model(open_model_folder(folders["base"]))
    measured = {
        name: measure(load_language_model(open_model_folder(folder)), base, arguments)
        for name, folder in folders.items()
    }
    console = Console() if sys.stdout.isatty() else Console(width=140)
    answers = Table(title="Held-out queries, one sampled answer each", title_justify="left", title_style="bold")
    for column in ("query", "base", "aligned"):
        answers.add_column(column, overflow="fold")
    queries = read_queries(arguments.world / "heldout.jsonl").queries
    shown = zip(queries, measured["base"].judged.answers, measured["aligned"].judged.answers, strict=True)
    for query, before, after in list(shown)[:: max(1, len(queries) // SHOWN)][:SHOWN]:
        answers.add_row(*(Text(text.strip()) for text in (query["query"], before[0], after[0])))
    console.print(answers)

    figures = Table(title="Before and after", title_justify="left", title_style="bold")
    for column in ("model", "good answers", "95 % interval", "loss on good documents", "KL on neutral texts"):
        figures.add_column(column)
    for name, entry in measured.items():
        rate = entry.rate
        figures.add_row(
            name, f"{rate.value:.1%} of {rate.total}", f"{rate.low:.1%} to {rate.high:.1%}", f"{entry.loss:.4f}",
            f"{entry.kl:.4f} nats",
        )  # fmt: skip
    console.print(figures)
    rates = [measured[name].rate for name in ("base", "aligned", "tuned")]
    closed = gap_closed(*(rate.value for rate in rates))
    console.print("gap closed: " + ("undefined, tuned equals base" if closed is None else f"{closed:.0f} %"))
    if rates[1].low <= rates[0].high:
        console.print("The aligned model is not better than the base beyond both intervals.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
