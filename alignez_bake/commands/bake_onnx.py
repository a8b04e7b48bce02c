"""`bake --base-onnx`: edits into an ONNX graph that is there already, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignez_bake.certificate.verdict import Certified, LevelCertificate, worst
from alignez_bake.commands.asked_edits import check_base, plan_of
from alignez_bake.commands.finishing import SPARE_BYTES, finish
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.base_files import copy_base_files
from alignez_bake.exporters.output_folder import OURS, check_output, check_space, staged_output
from alignez_bake.file_sharing import takes_space
from alignez_bake.hub.download import base_folder
from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_patch.base_graph import open_base_graph
from alignez_bake.onnx_patch.base_weights import check_weights
from alignez_bake.onnx_patch.card import graph_card
from alignez_bake.onnx_patch.decisions import decisions_of, site_patches
from alignez_bake.onnx_patch.edits_data import ENDING
from alignez_bake.onnx_patch.patch import bytes_needed, write_patched
from alignez_bake.onnx_patch.record import write_graph_record
from alignez_bake.onnx_patch.tensors_level import certify_stored
from alignez_bake.progress import NoProgress
from alignez_bake.report.html.packages import page_wanted
from alignez_bake.report.html.page_parts import PageParts, written_page
from alignez_bake.report.record import decisions_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.certificate.verdict import Level
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.lowering.decide import Decision
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.decisions import SitePatch
    from alignez_bake.progress import Progress
    from alignez_bake.streaming.written import Way


@dataclass(frozen=True)
class GraphBakeResult(Certified):
    """What was written, at `OUT`, or at `OUT.failed` if a check failed, and what its certificate says.

    Attributes:
        decisions: the way of each edit.
        data_files: the base's data files in the result, and how each came there: `reflinked`, `hard-linked`, `copied`.
        written: bytes of the new graph file and of the side file with the new values.
        skipped: files of the base's folder that are not in the result, with the reason.
        notes: why there is no report, one line each.
    """

    decisions: tuple[Decision, ...]
    data_files: tuple[tuple[str, str], ...] = ()
    written: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def report(self) -> Path | None:
        """Where its page lies, if it has one."""
        return written_page(self.path)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            **self.certificate_json(),
            "decisions": decisions_json(self.decisions),
            "data_files": [{"name": name, "way": way} for name, way in self.data_files],
            "bytes_written": self.written,
            "files_left_out": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "notes": list(self.notes),
            "report": None if self.report is None else str(self.report),
        }


def bake_onnx(
    base_onnx: str | Path,
    edits: str | Path | EditPlan,
    out: str | Path,
    *,
    model: str | Path | None = None,
    weights: Mapping[str, float] | None = None,
    point: str | None = None,
    verify: Level = "forward",
    allow_other_base: bool = False,
    require_fold: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
    seed: int = 0,
    report: bool | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> GraphBakeResult:
    """Bake edits into a causal graph with a cache, and certify the result.

    Args:
        base_onnx: folder of the graph, with one `.onnx` file and config.json, or genai_config.json; it is only read,
            but its data files may be hard-linked into the result.
        edits: `edits.safetensors`, a folder or hub id that holds one, or a plan in memory.
        out: folder to write; absent or empty.
        model: folder or hub id of the model that the graph was made of: the weights of edited maps must be its own,
            bit for bit, and the patched graph must run as the model with hooks does. Without it shapes must fit, and
            the certificate is of the graphs alone.
        weights: dials by objective.
        point: bake another candidate of the search that chose `edits`, by name; it lies beside them.
        verify: `tensors` compares files; `forward` also runs both graphs.
        allow_other_base: take edits that were made for another base, if their sites and shapes fit.
        require_fold: refuse edits that need nodes of their own.
        device: for `verify="forward"`: "cpu", "cuda", ...
        trust_remote_code: for `verify="forward"` with `model`, passed to transformers' loader.
        seed: recorded with the result.
        report: whether to write `OUT/alignez/report.html`; unless told, where the graphs are run.
        dry_run: decide, write nothing; the result has no levels.
        progress: where to say how far it is.

    Returns:
        The result, at `out` if its certificate passed, else at `OUT.failed`.

    Raises:
        BadInputError: anything that is refused; nothing was written.
    """
    folder, out = Path(base_onnx), Path(out)
    progress = progress or NoProgress()
    wanted, no_report = page_wanted(asked=report, by_default=verify == "forward")
    graph = open_base_graph(folder)
    check_output(out, folder)
    plan = plan_of(edits, weights, point)
    base = None if model is None else open_model_folder(base_folder(model))
    _check_plan(plan, graph, base, allow_other_base=allow_other_base)
    patches = site_patches(graph, plan, require_fold=require_fold)
    decisions = decisions_of(plan, patches)
    if base is not None:
        check_weights(graph, base, patches)
    place = next(parent for parent in out.resolve().parents if parent.exists())
    copies = sum((folder / name).stat().st_size for name in graph.data_files if takes_space(folder / name, place))
    check_space(out, bytes_needed(graph, patches) + copies + SPARE_BYTES)
    if dry_run:
        return GraphBakeResult(out, (), decisions)
    with staged_output(out) as staging:
        (staging / OURS).mkdir()
        written = write_patched(graph, patches, staging, progress)
        own = {graph.path.name, f"{graph.path.name}{ENDING}", *graph.data_files}
        skipped = copy_base_files(folder, staging, own)
        write_graph_record(
            staging,
            out,
            graph,
            plan,
            decisions,
            model=None if base is None else base.fingerprint,
            skipped=skipped,
            seed=seed,
        )
        levels: list[LevelCertificate] = [certify_stored(graph, patches, staging / graph.path.name, progress)]
        if verify == "forward":
            levels.append(
                running_level(
                    graph,
                    plan,
                    patches,
                    staging / graph.path.name,
                    base,
                    device=device,
                    trust_remote_code=trust_remote_code,
                    progress=progress,
                )
            )
        card = graph_card(out.name, graph, decisions, written.data_files, levels)
        path = finish(
            staging,
            out,
            levels,
            worst([level.verdict for level in levels]),
            card,
            plan=plan,
            base=folder,
            ways=cast("dict[str, Way]", dict(written.data_files)),
            page=PageParts(out.name) if wanted else None,
            progress=progress,
        )
    left_out = tuple((entry.name, entry.reason) for entry in skipped)
    return GraphBakeResult(path, tuple(levels), decisions, written.data_files, written.size, left_out, no_report)


def running_level(
    graph: BaseGraph,
    plan: EditPlan,
    patches: Sequence[SitePatch],
    patched: Path,
    base: ModelFolder | None,
    *,
    device: str,
    trust_remote_code: bool,
    progress: Progress,
) -> LevelCertificate:
    """Level `forward`: site by site beside the base graph, and, where the model is at hand, end to end beside it.

    Args:
        graph: the graph that was patched.
        plan: the edits.
        patches: what was done.
        patched: the patched `.onnx` file.
        base: the model that the graph was made of, or None.
        device: where everything runs.
        trust_remote_code: passed to transformers' loader.
        progress: counts runs.

    Raises:
        BadInputError: a graph or a model that does not run here.
    """
    # Both need ONNX Runtime, and the second torch and transformers, which the rest of a patch does without.
    from alignez_bake.onnx_patch.forward_level import certify_running  # noqa: PLC0415

    sites = certify_running(graph, patches, patched, device=device, progress=progress)
    if base is None:
        return sites
    from alignez_bake.onnx_patch.against_model import PatchedForwardLevel, certify_against_model  # noqa: PLC0415

    model = certify_against_model(
        base, graph, plan, patches, patched, device=device, trust_remote_code=trust_remote_code, progress=progress
    )
    return PatchedForwardLevel(sites, model)


def _check_plan(plan: EditPlan, graph: BaseGraph, base: ModelFolder | None, *, allow_other_base: bool) -> None:
    """Refuse edits for another model than the graph's, as far as that can be known.

    Raises:
        BadInputError: another base, or a base of another kind than the graph.
    """
    if base is not None:
        if base.architecture.model_type != graph.architecture.model_type:
            raise BadInputError(
                f"{graph.path} is a {graph.architecture.model_type} by its config, and {base.path} a "
                f"{base.architecture.model_type}: name the model that the graph was made of"
            )
        check_base(plan, base, allow_other_base=allow_other_base)
        return
    if plan.base is None or allow_other_base or plan.base.model_type == graph.architecture.model_type:
        return
    raise BadInputError(
        f"the edits were made for a {plan.base.model_type}, and {graph.path} is a {graph.architecture.model_type} by "
        "its config: use the graph of their own base, or --allow-other-base if sites and shapes are meant to fit"
    )
