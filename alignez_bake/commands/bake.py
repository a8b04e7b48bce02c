"""`bake`: edits into a base model, with a certificate. No model is run unless its forward pass is to be verified."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.certificate.verdict import Certified, LevelCertificate, worst
from alignez_bake.commands.asked_edits import check_base, plan_of
from alignez_bake.commands.base import opened_base
from alignez_bake.commands.finishing import SPARE_BYTES, finish
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.bake_key import bake_key
from alignez_bake.exporters.dtype import check_dtype, file_dtype
from alignez_bake.exporters.output_folder import OURS, check_output, check_space, staged_output
from alignez_bake.exporters.protocol import ExportSettings
from alignez_bake.exporters.registry import DEFAULT_EXPORTER, exporter_named, formats_that_carry
from alignez_bake.hub.download import base_folder, hub_name
from alignez_bake.integrity.base_parts import bytes_of_base_parts, keep_base_parts
from alignez_bake.integrity.hashing import DEFAULT, checked_algorithm
from alignez_bake.integrity.measure import manifest_of_weights
from alignez_bake.interference.contradictions import opposition_notes
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.progress import NoProgress
from alignez_bake.report.html.packages import page_wanted
from alignez_bake.report.html.page_parts import PageParts, written_page
from alignez_bake.report.html.report_data import Sample
from alignez_bake.report.model_card import CARD_SAMPLES, model_card
from alignez_bake.report.record import EDITS_FILE, decisions_json, write_record
from alignez_bake.safetensors_io.finite import check_finite_tensors
from alignez_bake.streaming.rounding_choice import checked_rounding
from alignez_bake.tuning.frontier_files import write_frontier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.commands.refitting import RefitKind, Refitted
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.exporters.protocol import Exporter
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class BakeResult(Certified):
    """What was written, at `OUT`, or at `OUT.failed` if a check failed, and what its certificate says.

    Attributes:
        lowering: the way of each edit.
        skipped: files of the base that are not in the result, with the reason.
        refitted: how the edits were changed before, if that was asked for.
        notes: what the exporter did beside the edits, and why there is no report, one line each.
    """

    lowering: Lowering
    skipped: tuple[tuple[str, str], ...]
    refitted: Refitted | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict | None:
        """The worst of the levels' verdicts; failed as well where a refit keeps nothing of an edit; else None."""
        return _verdict(self.levels, self.refitted)

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line each for what went wrong, in a refit or at any level."""
        return (*(() if self.refitted is None else self.refitted.reasons), *super().reasons)

    @property
    def report(self) -> Path | None:
        """Where its page lies, if it has one."""
        return written_page(self.path)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            **self.certificate_json(),
            "decisions": decisions_json(self.lowering.decisions),
            **({} if self.refitted is None else {"refit": self.refitted.to_json()}),
            "files_left_out": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "notes": list(self.notes),
            "report": None if self.report is None else str(self.report),
        }


def bake(
    model: str | Path,
    edits: str | Path | EditPlan,
    out: str | Path,
    *,
    artefact: str = DEFAULT_EXPORTER,
    dtype: str | None = None,
    weights: Mapping[str, float] | None = None,
    opset: int | None = None,
    external_data: bool = False,
    optimise: bool = False,
    weight_bits: int | None = None,
    link: bool = False,
    rounding: str = "auto",
    hash_algorithm: str = DEFAULT,
    reversible: bool = False,
    verify: Level | None = None,
    require_fold: bool = False,
    linearise: bool = False,
    refit_block: bool = False,
    batch_size: int = 64,
    allow_other_base: bool = False,
    allow_pickle: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
    seed: int = 0,
    pairs: str | Path | None = None,
    point: str | None = None,
    frontier: Mapping[str, EditPlan] | None = None,
    sample_queries: Sequence[str] = (),
    report: bool | None = None,
    shown: PageParts | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> BakeResult:
    """Bake edits into a base model, as the artefact that is asked for, and certify the result.

    Args:
        model: the base's folder or hub id; it is only read.
        edits: `edits.safetensors`, a folder or hub id that holds one, or a plan in memory.
        out: folder to write; absent or empty.
        artefact: name of the exporter.
        dtype: of all float tensors, such as "float32"; the stored dtypes unless given.
        weights: dials by objective.
        opset: of a graph's operators; the exporter's own choice unless given.
        external_data: of a graph: weights in a file beside it, however small they are.
        optimise: of a graph: fused operators.
        weight_bits: of a graph: 4 or 8 for weights that are quantised after the fold.
        link: of a checkpoint: weight files without an edit become hard links to the base's.
        rounding: of a checkpoint's edited values: `nearest`; `carry`, so that the edit survives 16 bits; or `auto`,
            which carries where nearest would lose it.
        hash_algorithm: of the manifest, `blake3-leaves`, `blake3` or `sha256`.
        reversible: of a checkpoint: keep what the result lacks of its base, so that `restore` needs no base.
        verify: `tensors` compares files; `forward` also runs result and hooked model; the exporter's own level unless
            given, which is `forward` for what cannot be written without running the model.
        require_fold: refuse edits that need an inserted module, whatever else is allowed.
        linearise: replace gated edits by the best affine maps, which fold; runs the base.
        refit_block: make edits of the MLP's output read what enters the MLP, so that hidden units can carry them;
            runs the base.
        batch_size: texts that run together in a refit.
        allow_other_base: take edits that were made for another base, if their sites and shapes fit.
        allow_pickle: read a base of pickled weights, by torch's weights-only loader; others refuse it.
        device: for `verify="forward"` and refits.
        trust_remote_code: whether a checkpoint may bring a small code file along, for edits that do not fold; and
            where the base runs, passed to transformers' loader.
        seed: recorded with the result.
        pairs: file to keep as `OUT/alignez/pairs.jsonl`.
        point: bake another candidate of the search that chose `edits`, by name; it lies beside them.
        frontier: plans of such candidates by name, to keep beside the edits of this result.
        sample_queries: with `verify="forward"`, the first of them stand in the model card, and some more in the
            report, with answers of the base and of the result; shipped ones unless given.
        report: whether to write `OUT/alignez/report.html`; unless told, where the result is run to be verified, and
            where `shown` is given.
        shown: what the report has beside the records; of the whole way.
        dry_run: decide, write nothing; the result has no levels.
        progress: where to say how far it is.

    Returns:
        The result, at `out` if its certificate passed, else at `OUT.failed`.

    Raises:
        BadInputError: anything that is refused; nothing was written.
    """
    folder, out = base_folder(model, trust_remote_code=trust_remote_code), Path(out)
    progress = progress or NoProgress()
    exporter = exporter_named(artefact)
    check_output(out, folder)
    with opened_base(folder, out, fp8=exporter.reads_fp8, allow_pickle=allow_pickle, progress=progress) as base:
        asked = plan = plan_of(edits, weights, point)
        check_base(plan, base, allow_other_base=allow_other_base)
        verify = checked_level(exporter, verify, base)
        runs_on = device if verify == "forward" else None
        settings = ExportSettings(
            check_dtype(dtype),
            str(model),
            opset,
            external_data,
            optimise,
            weight_bits,
            link=link,
            rounding=checked_rounding(rounding),
            hash_algorithm=checked_algorithm(hash_algorithm),
            runs_on=runs_on,
        )
        settings.check_options(exporter.name, exporter.options)
        wanted, no_report = page_wanted(asked=report, by_default=verify == "forward" or shown is not None)
        _check_reversible(exporter, base, reversible=reversible)
        code = trust_remote_code or not exporter.inserts_need_code

        def decided(chosen: EditPlan) -> Lowering:
            """The way of every edit, all of them carried."""
            lowering = lower(chosen, base, exporter, code=code, require_fold=require_fold, dtype=file_dtype(dtype))
            if lowering.refused:
                lowering.require_complete(formats_for(lowering, base))
            exporter.check(base, lowering, settings)
            return lowering

        refit = None
        if linearise or refit_block:
            # Runs the base, which the rest of a bake does without.
            from alignez_bake.commands.refitting import expected_plan, refitted  # noqa: PLC0415

            kind = _refit_kind(linearise=linearise, refit_block=refit_block)
            # What cannot be carried is refused before the base runs.
            decided(expected_plan(base, plan, kind, exporter))
            refit = refitted(
                base,
                plan,
                kind,
                exporter,
                device=device,
                trust_remote_code=trust_remote_code,
                batch_size=batch_size,
                progress=progress,
            )
            plan = refit.plan
        lowering = decided(plan)
        kept = bytes_of_base_parts(base, lowering, dtype) if reversible else 0
        check_space(out, exporter.bytes_needed(base, lowering, settings) + kept + SPARE_BYTES)
        if dry_run:
            return BakeResult(out, (), lowering, (), refit)
        if not exporter.streams:
            check_finite_tensors(base.tensors, progress=progress)
        with staged_output(out, bake_key(base, lowering, settings) if exporter.streams else None) as staging:
            (staging / OURS).mkdir(exist_ok=True)
            exported = exporter.export(base, lowering, staging, settings, progress)
            write_record(staging, out, base, lowering, settings, skipped=exported.skipped, seed=seed)
            keep_base_parts(staging, base.path, exported.written if reversible else None)
            _keep_beside(staging, pairs, frontier)
            levels: list[LevelCertificate] = [
                exported.certificate or exporter.certify_tensors(base, lowering, staging, progress)
            ]
            samples: list[tuple[str, str, str]] = []
            if verify == "forward":
                running = exporter.reload(base, staging, lowering, device=device, trust_remote_code=trust_remote_code)
                levels.append(running.certify(progress))
                # Imports torch and transformers, which the rest of a bake does without.
                from alignez_bake.commands.answers import samples_of  # noqa: PLC0415

                samples = samples_of(
                    base,
                    running,
                    plan,
                    sample_queries,
                    device=device,
                    batch_size=batch_size,
                    trust_remote_code=trust_remote_code,
                )
            card = model_card(
                out.name,
                base,
                lowering,
                levels,
                artefact=exporter.name,
                library=exporter.card_library,
                dtype=dtype,
                flags=settings.flags(),
                samples=samples[:CARD_SAMPLES],
                needs_code=bool(lowering.inserts) and exporter.inserts_need_code,
                base_id=hub_name(model),
            )
            path = finish(
                staging,
                out,
                levels,
                _verdict(levels, refit),
                card,
                plan=asked,
                base=base.path,
                known=manifest_of_weights(exported.written, algorithm=settings.hash_algorithm),
                algorithm=settings.hash_algorithm,
                refit=None if refit is None else refit.to_json(),
                page=_page(shown or PageParts(out.name), samples) if wanted else None,
                progress=progress,
            )
        return BakeResult(
            path,
            tuple(levels),
            lowering,
            tuple((file.name, file.reason) for file in exported.skipped),
            refit,
            (*exported.notes, *opposition_notes(asked), *no_report),
        )


def _keep_beside(staging: Path, pairs: str | Path | None, frontier: Mapping[str, EditPlan] | None) -> None:
    """What led to the edits, in the result."""
    if pairs is not None:
        shutil.copyfile(pairs, staging / OURS / "pairs.jsonl")
    write_frontier(staging / OURS / EDITS_FILE, frontier or {})


def _page(shown: PageParts, samples: Sequence[tuple[str, str, str]]) -> PageParts:
    """With the answers before and after, of which the card shows the first few."""
    return replace(shown, samples=tuple(Sample(*sample) for sample in samples))


def _verdict(levels: Sequence[LevelCertificate], refit: Refitted | None) -> Verdict | None:
    """A faithful bake of edits that are not what was asked for is no success."""
    lost: list[Verdict] = ["failed"] if refit is not None and refit.reasons else []
    return worst([*lost, *(level.verdict for level in levels)])


def checked_level(exporter: Exporter, level: Level | None, base: ModelFolder | None = None) -> Level:
    """The level that an artefact is certified at: the one asked for, else the exporter's own.

    Args:
        exporter: of the artefact.
        level: what is asked for.
        base: its base, where that is open already.

    Raises:
        BadInputError: `level` is above what the artefact can be checked at.
    """
    if level == "forward" and exporter.highest_level != "forward":
        raise BadInputError(
            f"a result of --as {exporter.name} does not run here, so it cannot be verified at level 'forward': use "
            "level 'tensors'"
        )
    if level == "forward" and base is not None and base.fp8_blocks is not None:
        raise BadInputError(
            f"{base.path} holds FP8 weights, which are not run here, so that nothing can be verified at level "
            "'forward': use level 'tensors'"
        )
    return exporter.default_level if level is None else level


def _check_reversible(exporter: Exporter, base: ModelFolder, *, reversible: bool) -> None:
    if reversible and base.tensors.path != base.path:
        raise BadInputError(
            f"--reversible keeps parts of safetensors files, and {base.path} has pickled ones, which nothing restores: "
            "leave it out"
        )
    if reversible and not exporter.streams:
        raise BadInputError(
            f"--reversible is for --as checkpoint, and a result of --as {exporter.name} undoes nothing: leave it out"
        )


def _refit_kind(*, linearise: bool, refit_block: bool) -> RefitKind:
    if linearise and refit_block:
        raise BadInputError("--linearise and --refit-block are two ways for the same edits: choose one")
    return "linearised" if linearise else "block"


def formats_for(lowering: Lowering, base: ModelFolder) -> tuple[str, ...]:
    """The formats that can carry all edits that a lowering refuses."""
    common: list[str] | None = None
    for decision in lowering.refused:
        try:
            carrying = formats_that_carry(decision.edit, find_slot(base, decision.edit.site))
        except BadInputError:
            return ()  # no such site: no format has it either
        common = [name for name in (carrying if common is None else common) if name in carrying]
    return tuple(common or ())
