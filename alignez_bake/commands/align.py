"""`align`: the whole way, from a base model to a certified checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.asked_fit import AUTO, AskedFit
from alignez_bake.commands.activation_pictures import with_pictures
from alignez_bake.commands.answers import SAMPLES
from alignez_bake.commands.bake import BakeResult, bake
from alignez_bake.commands.fit import fitted_json
from alignez_bake.commands.refitting import expected_plan
from alignez_bake.commands.resuming import removed_with_the_outcome, search_file
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.dtype import check_dtype, file_dtype
from alignez_bake.exporters.output_folder import check_output, check_space, parents_made
from alignez_bake.exporters.protocol import ExportSettings
from alignez_bake.exporters.registry import DEFAULT_EXPORTER, exporter_named
from alignez_bake.feasibility.assess import assess_cheaply
from alignez_bake.feasibility.record import with_feasibility
from alignez_bake.fit_settings import FitSettings, check_ways, probe_plan
from alignez_bake.hub.download import base_folder
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import Asked, Fitted, check_together, read_asked, write_own_pairs
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.report.html.packages import page_wanted
from alignez_bake.report.html.page_parts import PageParts
from alignez_bake.safetensors_io.finite import check_finite_tensors
from alignez_bake.tuning.named_fit import fit_named
from alignez_bake.tuning.neutral_drift import check_neutral
from alignez_bake.tuning.offered import TuneSettings, check_settings
from alignez_bake.tuning.tuned_fit import asked_for_pairs, queries_to_judge, tune_edits

if TYPE_CHECKING:
    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.asked_fit import Strength
    from alignez_bake.exporters.protocol import Exporter
    from alignez_bake.feasibility.assess import Feasibility
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.tuning.tuned_fit import TunedFit


@dataclass(frozen=True)
class AlignPlan:
    """What a run would do; all that `dry_run` gives.

    Attributes:
        out: where the result would lie.
        objectives: name and dial of each.
        queries: number of distinct queries.
        duplicates: repeated queries that are dropped.
        method: its name and settings.
        sites: what would be edited.
    """

    out: Path
    objectives: dict[str, float]
    queries: int
    duplicates: int
    method: dict[str, Any]
    sites: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "out": str(self.out),
            "objectives": self.objectives,
            "queries": self.queries,
            "duplicate_queries_dropped": self.duplicates,
            "method": self.method,
            "sites": list(self.sites),
        }


@dataclass(frozen=True)
class AlignResult:
    """What a run did.

    Attributes:
        plan: what was to be done.
        note: says if answers were shorter than the paper's, or is empty.
        fitted: the edits; None after a dry run.
        baked: the result; None after a dry run.
        feasibility: by objective what the pairs foretold, before anything was fitted; None after a dry run.
        tuned: the search, where method or strength were to be chosen; it may have found nothing that helps, and then
            nothing is fitted or baked.
    """

    plan: AlignPlan
    note: str = ""
    fitted: Fitted | None = None
    baked: BakeResult | None = None
    feasibility: dict[str, Feasibility] | None = None
    tuned: TunedFit | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        done: dict[str, Any] = {}
        if self.feasibility is not None:
            feasibility = {name: found.to_json() for name, found in self.feasibility.items()}
            done = {"note": self.note, "feasibility": feasibility}
        if self.tuned is not None:
            done["tuning"] = self.tuned.tuning.to_json()
        if self.fitted is not None and self.baked is not None:
            done |= {"fit": fitted_json(self.fitted), **self.baked.to_json()}
        return {"dry_run": self.feasibility is None, "plan": self.plan.to_json(), **done}

    def result_path(self) -> Path:
        """Where the result lies."""
        return self.plan.out if self.baked is None else self.baked.path

    def raise_if_failed(self) -> None:
        """Raise unless the certificate passed; a dry run has none.

        Raises:
            CheckFailedError: as `BakeResult.raise_if_failed`; or no edit is better than the base.
        """
        if self.tuned is not None:
            self.tuned.raise_if_nothing_helps()
        if self.baked is not None:
            self.baked.raise_if_failed()


def align(
    model: str | Path,
    out: str | Path,
    *,
    objective: str = "helpful",
    objectives_file: str | Path | None = None,
    queries: str | Path | None = None,
    prompt_template: str | None = None,
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
    artefact: str = DEFAULT_EXPORTER,
    dtype: str | None = None,
    opset: int | None = None,
    external_data: bool = False,
    optimise: bool = False,
    weight_bits: int | None = None,
    require_fold: bool = False,
    linearise: bool = False,
    device: str = "cpu",
    seed: int = 0,
    batch_size: int = 64,
    save_pairs: bool = False,
    report: bool | None = None,
    trust_remote_code: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> AlignResult:
    """Let a base model write pairs, find edits, fold them into its weights, and certify the result on both levels.

    The pairs grow in a hidden file beside `out`, so that the same call goes on where an interrupted one stopped;
    it is removed when the result is complete.

    Args:
        model: the base's folder or hub id; it is only read.
        out: folder to write; absent or empty.
        objective: `name[=weight],...`.
        objectives_file: objectives of the user's own.
        queries: a file of queries; those that the project ships unless given.
        prompt_template: how a query becomes a prompt; see `prompts.prompt_form`.
        method: by name; `auto` chooses method and strength by the base's own judgement of answers to a third of the
            queries, which make no pairs then.
        strength: the method's own; `auto`: chosen in the same way.
        layers: such as `4-20`; all unless given.
        rank: of each edit; of a choice None: to be chosen, as are layers and penalty.
        penalty: λ of a method that is a ridge.
        positions: which rows of each forward call to edit: `all`, or the `last` one, as AlignEZ does.
        gated: the method's own gates instead of its linear form.
        top_layers: how many of the layers to edit, those that score best, or `auto`.
        joint: fit several objectives together, so that the dial of each moves the others less (the ridges).
        untie: change a head that is tied to the embedding as well (contrastive_decoding); the result has a head of its
            own, once more the embedding's size.
        kl_budget: of such a choice: most KL(base || edited) on neutral texts, in nats per token.
        neutral: of such a choice: a file of texts to leave alone, one a line, of which the fits see every second one
            and the others measure; the project's own, which only measure, unless given.
        artefact: name of the exporter.
        dtype: of all float tensors of the result; the stored dtypes unless given.
        opset: of a graph's operators; the exporter's own choice unless given.
        external_data: of a graph: weights in a file beside it, however small they are.
        optimise: of a graph: fused operators.
        weight_bits: of a graph: 4 or 8 for weights that are quantised after the fold.
        require_fold: refuse edits that need an inserted module, whatever else is allowed.
        linearise: fold the best affine maps of gated edits.
        device: where the model runs.
        seed: of everything that is sampled.
        batch_size: texts that run together.
        save_pairs: keep the pairs as `OUT/alignez/pairs.jsonl`.
        report: whether to write `OUT/alignez/report.html`; unless told, where its packages are installed.
        trust_remote_code: passed to transformers' loader of the base; and whether the result may bring a small code
            file along, for edits that do not fold.
        dry_run: check everything that can be checked without running the model; write nothing.
        progress: where to say how far it is.

    Raises:
        BadInputError: anything that is refused, before the long work starts where it can be known then.
    """
    out = Path(out)
    wanted, _ = page_wanted(asked=report, by_default=True)
    objectives_file = None if objectives_file is None else Path(objectives_file)
    queries = None if queries is None else Path(queries)
    asked = read_asked(objective, objectives_file, queries)
    folder = base_folder(model, trust_remote_code=trust_remote_code)
    base = open_model_folder(folder)
    check_output(out, folder)
    exporter = exporter_named(artefact)
    export_settings = ExportSettings(
        check_dtype(dtype), str(model), opset, external_data, optimise, weight_bits, runs_on=device
    )
    export_settings.check_options(exporter.name, exporter.options)
    code = trust_remote_code or not exporter.inserts_need_code
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
    settings = check_settings(base, asked_fit)
    check_together(asked.objectives, asked.weights, joint=joint)
    split = queries_to_judge(asked.queries, asked.weights, seed) if isinstance(settings, TuneSettings) else None
    for each in settings.kinds if isinstance(settings, TuneSettings) else (settings,):
        _check_way(each, base, exporter, export_settings, code=code, require_fold=require_fold, linearise=linearise)
    check_space(out, exporter.bytes_needed(base, lower(EditPlan(()), base, exporter), export_settings))
    plan = _plan(out, asked, settings, base.architecture)
    if dry_run:
        return AlignResult(plan)
    progress = progress or NoProgress()
    # Before the long work; a model in memory holds the tensors alone that it uses. `bake` opens the base anew and looks
    # again: hours may have passed by then, and a look costs half a millisecond a MB.
    check_finite_tensors(base.tensors, progress=progress)
    lm = load_language_model(base, device=device, trust_remote_code=trust_remote_code)
    form = prompt_form(lm.tokenizer, prompt_template)
    check_neutral(lm, settings.neutral, form, fewest=settings.fewest_neutral)
    growing, searching = out.with_name(f".{out.name}.pairs.jsonl"), search_file(out)
    with parents_made(out):
        # Not within the next context: a file that is refused here belongs to another run.
        of_pairs = asked if split is None else asked_for_pairs(lm, asked, split, form)
        pairs, limits = write_own_pairs(
            lm, of_pairs, form, growing, batch_size=batch_size, seed=seed, progress=progress
        )
        with removed_with_the_outcome(searching, growing):
            feasibility = assess_cheaply(
                lm,
                pairs.records,
                asked.objectives,
                form,
                weights=asked.weights,
                answer_tokens=limits.answer,
                batch_size=batch_size,
                seed=seed,
            )
            tuned: TunedFit | None = None
            if isinstance(settings, FitSettings):
                fitted = fit_named(
                    lm,
                    pairs.records,
                    asked.objectives,
                    form,
                    settings,
                    weights=asked.weights,
                    batch_size=batch_size,
                    progress=progress,
                )
            else:
                assert split is not None
                tuned = tune_edits(
                    lm,
                    pairs.records,
                    asked.objectives,
                    form,
                    settings,
                    held_out=split.held_out,
                    weights=asked.weights,
                    batch_size=batch_size,
                    state_path=searching,
                    progress=progress,
                )
                if tuned.fitted is None:
                    return AlignResult(plan, limits.note, feasibility=feasibility, tuned=tuned)
                fitted = tuned.fitted
            fitted = with_feasibility(fitted, feasibility)
            shown = PageParts(out.name, notes=(f"Pairs: {limits.note}.",) if limits.note else ())
            if wanted:
                shown = with_pictures(
                    shown,
                    lm,
                    pairs.records,
                    asked.objectives,
                    form=form,
                    plan=fitted.plan,
                    batch_size=batch_size,
                    progress=progress,
                )
            del lm  # verification loads what it needs
            baked = bake(
                model,
                fitted.plan,
                out,
                artefact=artefact,
                dtype=dtype,
                opset=opset,
                external_data=external_data,
                optimise=optimise,
                weight_bits=weight_bits,
                verify=exporter.highest_level,
                require_fold=require_fold,
                linearise=linearise,
                batch_size=batch_size,
                device=device,
                trust_remote_code=trust_remote_code,
                seed=seed,
                pairs=growing if save_pairs else None,
                frontier=None if tuned is None else tuned.frontier,
                sample_queries=[query["query"] for query in (asked.queries if split is None else split.held_out)][
                    :SAMPLES
                ],
                report=report,
                shown=shown,
                progress=progress,
            )
    return AlignResult(plan, limits.note, fitted, baked, feasibility, tuned)


def _check_way(
    settings: FitSettings,
    base: ModelFolder,
    exporter: Exporter,
    export_settings: ExportSettings,
    *,
    code: bool,
    require_fold: bool,
    linearise: bool,
) -> None:
    """Refuse now what the artefact cannot carry: the edits' values do not matter to that."""
    probe = probe_plan(settings, base)
    if linearise:
        _check_linearise(settings)
        probe = expected_plan(base, probe, "linearised", exporter)
    elif "insert" in exporter.routes:
        check_ways(settings, base, code=code and not require_fold)
    dtype = file_dtype(export_settings.dtype)
    lowering = lower(probe, base, exporter, code=code, require_fold=require_fold, dtype=dtype)
    lowering.require_complete()
    exporter.check(base, lowering, export_settings)


def _check_linearise(settings: FitSettings) -> None:
    """Refuse `--linearise` where it will find nothing to do, or something that no weight can do."""
    if not settings.gated:
        raise BadInputError("--linearise is for edits with gates, and there are none without --gated: leave it out")
    if settings.positions != "all":
        raise BadInputError(
            f"--linearise: weights edit every position, so edits of --positions {settings.positions} fold no better "
            "when they are linear: use --positions all, or leave --linearise out"
        )


def _plan(out: Path, asked: Asked, settings: FitSettings | TuneSettings, architecture: Architecture) -> AlignPlan:
    if isinstance(settings, TuneSettings):
        method, kinds = settings.as_json(), settings.kinds
    else:
        method, kinds = {"name": settings.method.name, **settings.as_json()}, (settings,)
    sites = dict.fromkeys(str(site) for each in kinds for site in each.method.sites(architecture, each.layers))
    return AlignPlan(out, dict(asked.weights), len(asked.queries), asked.duplicates, method, tuple(sites))
