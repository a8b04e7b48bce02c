"""`fit`: steps 2 and 3 up to the edits. Activations are recorded on pairs, and edits fitted to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.asked_fit import AUTO, AskedFit
from alignez_bake.commands.given_pairs import read_asked_pairs
from alignez_bake.commands.resuming import removed_with_the_outcome, search_file
from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import parents_made
from alignez_bake.fit_settings import FitSettings
from alignez_bake.hub.download import base_folder
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import Fitted, check_together
from alignez_bake.progress import NoProgress
from alignez_bake.tuning.frontier_files import check_frontier_replaceable, remove_frontier, write_frontier
from alignez_bake.tuning.named_fit import fit_named
from alignez_bake.tuning.neutral_drift import check_neutral
from alignez_bake.tuning.offered import TuneSettings, check_settings
from alignez_bake.tuning.tuned_fit import queries_to_judge, tune_edits

if TYPE_CHECKING:
    from alignez_bake.asked_fit import Strength
    from alignez_bake.progress import Progress
    from alignez_bake.tuning.tuned_fit import TunedFit
    from alignez_bake.tuning.tuner import SplitQueries


@dataclass(frozen=True)
class FitResult:
    """The edits that were written, and what led to them.

    Attributes:
        path: of the edits; nothing is there where a search found nothing that helps.
        fitted: the edits; None where there are none.
        tuned: the search, where method or strength were to be chosen.
    """

    path: Path
    fitted: Fitted | None
    tuned: TunedFit | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        tuning = {} if self.tuned is None else {"tuning": self.tuned.tuning.to_json()}
        fitted = {} if self.fitted is None else fitted_json(self.fitted)
        return {"out": str(self.path), **tuning, **fitted}

    def raise_if_failed(self) -> None:
        """Raise unless edits were written.

        Raises:
            CheckFailedError: no edit is better than the base.
        """
        if self.tuned is not None:
            self.tuned.raise_if_nothing_helps()


def fitted_json(fitted: Fitted) -> dict[str, Any]:
    """Pairs and fit as JSON values."""
    return {
        "edits": len(fitted.plan.edits),
        "weights": dict(fitted.plan.weights),
        "pairs": {name: report.as_json() for name, report in fitted.filters.items()},
        "sites": {name: [site.as_json() for site in sites] for name, sites in fitted.sites.items()},
        "provenance": dict(fitted.plan.provenance),
    }


def fit(
    model: str | Path,
    pairs: str | Path,
    out: str | Path,
    *,
    method: str = AUTO,
    strength: Strength = None,
    layers: str | None = None,
    rank: int | None = None,
    penalty: float | None = None,
    positions: str = "all",
    gated: bool = False,
    top_layers: int | str | None = None,
    joint: bool = False,
    untie: bool = False,
    kl_budget: float | None = None,
    neutral: str | Path | None = None,
    objective: str | None = None,
    objectives_file: str | Path | None = None,
    prompt_template: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    batch_size: int = 64,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Fit edits to pairs and write them.

    The file may hold edits that cannot be folded; `explain` says which, and `bake` what each artefact does of them.
    A choice grows in a hidden file beside `out`, so that the same call goes on where an interrupted one stopped; it is
    removed when there is a result, or nothing that helps.

    Args:
        model: the base's folder or hub id.
        pairs: a file of pairs, of `pairs` or of the user's own.
        out: the edit file to write; an existing one is replaced only if it is an edit file.
        method: by name; `auto` chooses method and strength by the base's own judgement of answers to a third of the
            pairs' queries, to which nothing is fitted then.
        strength: the method's own; `auto`: chosen in the same way.
        layers: such as `4-20`; all unless given.
        rank: of each edit; of a choice None: to be chosen, as are layers and penalty.
        penalty: λ of a method that is a ridge.
        positions: which rows of each forward call the edits change: `all`, or `last`, AlignEZ's own rule.
        gated: the method's own non-linear operators instead of their linear form (alignez_v2).
        top_layers: edit only this many of the layers, those with the smallest CCS loss (alignez_v1, ccs) or the
            largest alignment score (alignez_v2); `auto`: as many as the method's own rule takes.
        joint: fit several objectives together, so that the dial of each moves the others less (the ridges).
        untie: change a head that is tied to the embedding as well (contrastive_decoding); the result has a head of its
            own, once more the embedding's size.
        kl_budget: of such a choice: most KL(base || edited) on neutral texts, in nats per token.
        neutral: of such a choice: a file of texts to leave alone, one a line, of which the fits see every second one
            and the others measure; the project's own, which only measure, unless given.
        objective: `name[=weight],...` to fit; all that the pairs have unless given. Pairs of the user's own that
            name none count as the first of these, or as `helpful`.
        objectives_file: objectives of the user's own.
        prompt_template: as for `pairs`; what the file of pairs says unless given.
        device: where the model runs.
        seed: for methods that draw random numbers.
        batch_size: texts that run together.
        trust_remote_code: passed to transformers' loader.
        progress: counts sequences.

    Raises:
        BadInputError: anything that is refused; nothing was written.
    """
    pairs = Path(pairs)
    out = Path(out)
    objectives_file = None if objectives_file is None else Path(objectives_file)
    if out.is_dir():
        raise BadInputError(f"--out {out} is a folder: name a file for the edits, such as {out / 'edits.safetensors'}")
    if out.exists():
        _check_replaceable(out)
    folder = open_model_folder(base_folder(model, trust_remote_code=trust_remote_code))
    check_frontier_replaceable(out)
    asked_fit = AskedFit(
        method=method,
        strength=strength,
        layers=layers,
        rank=rank,
        penalty=penalty,
        seed=seed,
        positions=positions,
        gated=gated,
        top_layers=top_layers,
        joint=joint,
        untie=untie,
        kl_budget=kl_budget,
        neutral=neutral,
    )
    settings = check_settings(folder, asked_fit)
    asked = read_asked_pairs(pairs, objective=objective, objectives_file=objectives_file)
    records, objectives, weights = asked.records.records, asked.objectives, asked.weights
    # Pairs of which no dial is asked for may hold objectives that would cancel.
    check_together(objectives, {} if objective is None else weights, joint=joint)
    split: SplitQueries | None = None
    if isinstance(settings, TuneSettings):
        queries = [{"query": text} for text in dict.fromkeys(record.query["query"] for record in records)]
        split = queries_to_judge(queries, weights, seed)
    lm = load_language_model(folder, device=device, trust_remote_code=trust_remote_code)
    form = asked.form_for(lm, prompt_template)
    check_neutral(lm, settings.neutral, form, fewest=settings.fewest_neutral)
    progress = progress or NoProgress()
    if isinstance(settings, FitSettings):
        fitted = fit_named(
            lm, records, objectives, form, settings, weights=weights, batch_size=batch_size, progress=progress
        )
        with parents_made(out):
            write_edits(fitted.plan, out)
        remove_frontier(out)
        return FitResult(out, fitted)
    assert split is not None
    of_pairs = {query["query"] for query in split.pairs}
    searching = search_file(out)
    with parents_made(out), removed_with_the_outcome(searching):
        tuned = tune_edits(
            lm,
            [record for record in records if record.query["query"] in of_pairs],
            objectives,
            form,
            settings,
            held_out=split.held_out,
            weights=weights,
            batch_size=batch_size,
            state_path=searching,
            progress=progress,
        )
        if tuned.fitted is not None:
            write_frontier(out, tuned.frontier)
            write_edits(tuned.fitted.plan, out)
    return FitResult(out, tuned.fitted, tuned)


def _check_replaceable(out: Path) -> None:
    """Edits replace edits, and nothing else: not a model's weights, whose file looks alike.

    Raises:
        BadInputError: the file is none of edits.
    """
    try:
        read_edits(out)
    except BadInputError as error:
        raise BadInputError(f"--out {out} exists and is no edit file, so it is not replaced: {error}") from None
