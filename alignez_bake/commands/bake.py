"""`bake`: edits into a base model, with a certificate. No model is run unless its forward pass is to be verified."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.certificate.verdict import Certified, LevelCertificate, worst
from alignez_bake.edit_file import read_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.dtype import file_dtype
from alignez_bake.exporters.output_folder import OURS, check_output, check_space, publish, staged_output
from alignez_bake.exporters.protocol import ExportSettings
from alignez_bake.exporters.registry import DEFAULT_EXPORTER, exporter_named
from alignez_bake.hub.download import base_folder, edits_file
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from alignez_bake.report.model_card import model_card
from alignez_bake.report.record import decisions_json, write_certificate, write_record
from alignez_bake.safetensors_io.finite import check_finite_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.certificate.verdict import Level
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

# Records, certificate, card and the copied small files, beside the artefact.
_SPARE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class BakeResult(Certified):
    """What was written, at `OUT`, or at `OUT.failed` if a check failed, and what its certificate says.

    Attributes:
        lowering: the way of each edit.
        skipped: files of the base that are not in the result, with the reason.
    """

    lowering: Lowering
    skipped: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            **self.certificate_json(),
            "decisions": decisions_json(self.lowering),
            "files_left_out": [{"name": name, "reason": reason} for name, reason in self.skipped],
        }


def bake(
    model: str | Path,
    edits: str | Path | EditPlan,
    out: str | Path,
    *,
    artefact: str = DEFAULT_EXPORTER,
    dtype: str | None = None,
    weights: Mapping[str, float] | None = None,
    verify: Level = "tensors",
    require_fold: bool = False,
    allow_other_base: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
    seed: int = 0,
    pairs: str | Path | None = None,
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
        verify: `tensors` compares files; `forward` also runs result and hooked model.
        require_fold: refuse edits that need an inserted module, whatever else is allowed.
        allow_other_base: take edits that were made for another base, if their sites and shapes fit.
        device: for `verify="forward"`.
        trust_remote_code: whether the result may bring a small code file along, for edits that do not fold; and for
            `verify="forward"`, passed to transformers' loader of the base.
        seed: recorded with the result.
        pairs: file to keep as `OUT/alignez/pairs.jsonl`.
        dry_run: decide, write nothing; the result has no levels.
        progress: where to say how far it is.

    Returns:
        The result, at `out` if its certificate passed, else at `OUT.failed`.

    Raises:
        BadInputError: anything that is refused; nothing was written.
    """
    folder, out = base_folder(model, trust_remote_code=trust_remote_code), Path(out)
    pairs = None if pairs is None else Path(pairs)
    progress = progress or NoProgress()
    base = open_model_folder(folder)
    check_output(out, folder)
    plan = edits if isinstance(edits, EditPlan) else read_edits(edits_file(edits))
    if weights:
        plan = plan.with_weights(weights)
    check_base(plan, base, allow_other_base=allow_other_base)
    exporter = exporter_named(artefact)
    settings = ExportSettings(dtype=dtype, base_name=str(model))
    code = trust_remote_code and not require_fold
    lowering = lower(plan, base, exporter, code=code, dtype=file_dtype(dtype))
    lowering.require_complete()
    exporter.check(base, lowering, settings)
    check_space(out, exporter.bytes_needed(base, lowering, settings) + _SPARE_BYTES)
    if dry_run:
        return BakeResult(out, (), lowering, ())
    check_finite_tensors(base.tensors, progress=progress)
    with staged_output(out) as staging:
        (staging / OURS).mkdir()
        exported = exporter.export(base, lowering, staging, settings, progress)
        write_record(staging, out, base, lowering, dtype=dtype, skipped=exported.skipped, seed=seed)
        if pairs is not None:
            shutil.copyfile(pairs, staging / OURS / "pairs.jsonl")
        levels: list[LevelCertificate] = [exporter.certify_tensors(base, lowering, staging, progress)]
        if verify == "forward":
            # Imports torch and transformers, which the rest of a bake does without.
            from alignez_bake.certificate.forward import certify_forward  # noqa: PLC0415

            levels.append(
                certify_forward(
                    base,
                    lowering,
                    exporter.reload(base, staging, lowering, device=device, trust_remote_code=trust_remote_code),
                    device=device,
                    trust_remote_code=trust_remote_code,
                    progress=progress,
                )
            )
        verdict = worst([level.verdict for level in levels])
        write_certificate(staging, levels, verdict)
        (staging / "README.md").write_text(model_card(out.name, base, lowering, levels), encoding="utf-8")
        path = publish(staging, out, failed=verdict != "passed")
    return BakeResult(path, tuple(levels), lowering, tuple((file.name, file.reason) for file in exported.skipped))


def check_base(plan: EditPlan, base: ModelFolder, *, allow_other_base: bool) -> None:
    """Refuse edits made for another base, unless that is asked for.

    Raises:
        BadInputError: the plan names a base, and it is not this one.
    """
    if plan.base is None or allow_other_base or plan.base == base.fingerprint:
        return
    if plan.base.model_type != base.fingerprint.model_type:
        difference = f"a {plan.base.model_type}, not a {base.fingerprint.model_type}"
    elif plan.base.config_sha256 != base.fingerprint.config_sha256:
        difference = "one with another config.json"
    else:
        difference = "one with other weights"
    raise BadInputError(
        f"the edits were made for another base than {base.path} ({difference}): use their own base, or "
        "--allow-other-base if sites and shapes are meant to fit"
    )
