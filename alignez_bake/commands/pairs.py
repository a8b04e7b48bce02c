"""`pairs`: step 1 alone. The base writes good and bad answers to queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.hub.download import base_folder
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import read_asked, write_own_pairs
from alignez_bake.preference_pairs.filters import FilterReport, match_pairs
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.prompt_form import prompt_form

if TYPE_CHECKING:
    from alignez_bake.preference_pairs.records import PairSet
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class PairsResult:
    """What was written.

    Attributes:
        path: the file of pairs.
        pairs: its records.
        filters: by objective how many pairs a fit would keep.
        duplicates: repeated queries that were dropped.
        note: says if answers were shorter than the paper's, or is empty.
    """

    path: Path
    pairs: PairSet
    filters: dict[str, FilterReport]
    duplicates: int
    note: str

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "out": str(self.path),
            "answers": len(self.pairs.records),
            "pairs": {name: report.as_json() for name, report in self.filters.items()},
            "duplicate_queries_dropped": self.duplicates,
            "note": self.note,
        }


def pairs(
    model: str | Path,
    out: str | Path,
    *,
    objective: str = "helpful",
    objectives_file: str | Path | None = None,
    queries: str | Path | None = None,
    prompt_template: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    batch_size: int = 64,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> PairsResult:
    """Let the base write pairs; the same call goes on where an interrupted one stopped.

    Args:
        model: the base's folder or hub id.
        out: file of JSON lines to write or to go on with.
        objective: `name[=weight],...`; weights do not matter here.
        objectives_file: objectives of the user's own.
        queries: a file of queries; those that the project ships unless given.
        prompt_template: how a query becomes a prompt; see `prompts.prompt_form`.
        device: where the model runs.
        seed: of all samples.
        batch_size: texts that run together.
        trust_remote_code: passed to transformers' loader.
        progress: counts answers.

    Raises:
        BadInputError: anything that is refused; nothing was written, or the file is as the interrupted run left it.
    """
    out = Path(out)
    objectives_file = None if objectives_file is None else Path(objectives_file)
    queries = None if queries is None else Path(queries)
    asked = read_asked(objective, objectives_file, queries)
    if out.is_dir():
        raise BadInputError(f"--out {out} is a folder: name a file for the pairs, such as {out / 'pairs.jsonl'}")
    folder = open_model_folder(base_folder(model, trust_remote_code=trust_remote_code))
    lm = load_language_model(folder, device=device, trust_remote_code=trust_remote_code)
    form = prompt_form(lm.tokenizer, prompt_template)
    written, limits = write_own_pairs(
        lm, asked, form, out, batch_size=batch_size, seed=seed, progress=progress or NoProgress()
    )
    filters = {entry.name: match_pairs(written.records, entry.name, min_pairs=0)[1] for entry in asked.objectives}
    return PairsResult(out, written, filters, asked.duplicates, limits.note)
