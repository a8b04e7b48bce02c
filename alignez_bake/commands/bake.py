"""`bake`: edits into a base model, with a certificate. No model is run unless its forward pass is to be verified."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.certificate.tensors import certify_tensors
from alignez_bake.certificate.verdict import LevelCertificate, Verdict, worst
from alignez_bake.edit_file import read_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.exporters.checkpoint import FILE_DTYPES, check_dtype
from alignez_bake.exporters.output_folder import OURS, check_output, check_space, publish, staged_output
from alignez_bake.exporters.registry import DEFAULT_EXPORTER, exporter_named
from alignez_bake.lowering.decide import Lowering, lower
from alignez_bake.model_folder import ModelFolder, open_model_folder
from alignez_bake.report.model_card import model_card
from alignez_bake.report.record import decisions_json, write_certificate, write_record
from alignez_bake.safetensors_io.dtypes import BY_NAME
from alignez_bake.safetensors_io.finite import check_finite_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.certificate.verdict import Level
    from alignez_bake.progress import Progress

# Records, certificate, card and the copied small files, beside the weights.
_SPARE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class BakeResult:
    """What was written, and what its certificate says.

    Attributes:
        path: `OUT`, or `OUT.failed` if a check failed.
        lowering: the way of each edit.
        levels: the certificate, level by level.
        skipped: files of the base that are not in the result, with the reason.
    """

    path: Path
    lowering: Lowering
    levels: tuple[LevelCertificate, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the levels' verdicts."""
        return worst([level.verdict for level in self.levels])

    def raise_if_failed(self) -> None:
        """Raise unless every level passed.

        Raises:
            CheckFailedError: the message gives the reasons and where the result lies.
        """
        if self.verdict != "passed":
            reasons = "; ".join(reason for level in self.levels for reason in level.reasons)
            raise CheckFailedError(f"the certificate is {self.verdict}: {reasons}; the result lies in {self.path}")

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "out": str(self.path),
            "verdict": self.verdict,
            "decisions": decisions_json(self.lowering),
            "certificate": {level.level: level.to_json() for level in self.levels},
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
    allow_other_base: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
    seed: int = 0,
    pairs: str | Path | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> BakeResult:
    """Fold edits into a base model's weights and certify the result.

    Args:
        model: the base's folder; it is only read.
        edits: `edits.safetensors`, or a plan in memory.
        out: folder to write; absent or empty.
        artefact: name of the exporter.
        dtype: of all float tensors, such as "float32"; the stored dtypes unless given.
        weights: dials by objective.
        verify: `tensors` compares files; `forward` also runs baked and hooked model.
        allow_other_base: take edits that were made for another base, if their sites and shapes fit.
        device: for `verify="forward"`.
        trust_remote_code: for `verify="forward"`, passed to transformers' loader.
        seed: recorded with the result.
        pairs: file to keep as `OUT/alignez/pairs.jsonl`.
        dry_run: decide, write nothing; the result has no levels.
        progress: where to say how far it is.

    Returns:
        The result, at `out` if its certificate passed, else at `OUT.failed`.

    Raises:
        BadInputError: anything that is refused; nothing was written.
    """
    model = Path(model)
    out = Path(out)
    pairs = None if pairs is None else Path(pairs)
    base = open_model_folder(model)
    check_output(out, model)
    plan = edits if isinstance(edits, EditPlan) else read_edits(Path(edits))
    if weights:
        plan = plan.with_weights(weights)
    check_base(plan, base, allow_other_base=allow_other_base)
    exporter = exporter_named(artefact)
    file_dtype = check_dtype(dtype)
    lowering = lower(plan, base, exporter)
    lowering.require_complete()
    check_space(out, weight_bytes(base, file_dtype) + _SPARE_BYTES)
    if dry_run:
        return BakeResult(out, lowering, (), ())
    check_finite_tensors(base.tensors, progress=progress)
    with staged_output(out) as staging:
        exported = exporter.export(base, lowering, staging, dtype=file_dtype, progress=progress)
        write_record(staging, out, base, lowering, dtype=file_dtype, skipped=exported.skipped, seed=seed)
        if pairs is not None:
            shutil.copyfile(pairs, staging / OURS / "pairs.jsonl")
        result = open_model_folder(staging)
        levels: list[LevelCertificate] = [certify_tensors(base, result, lowering, progress=progress)]
        if verify == "forward":
            # Imports torch and transformers, which the rest of a bake does without.
            from alignez_bake.certificate.forward import certify_forward  # noqa: PLC0415

            levels.append(
                certify_forward(
                    base, result, plan, device=device, trust_remote_code=trust_remote_code, progress=progress
                )
            )
        verdict = worst([level.verdict for level in levels])
        write_certificate(staging, levels, verdict)
        (staging / "README.md").write_text(model_card(out.name, base, lowering, levels), encoding="utf-8")
        path = publish(staging, out, failed=verdict != "passed")
    return BakeResult(path, lowering, tuple(levels), tuple((file.name, file.reason) for file in exported.skipped))


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


def weight_bytes(base: ModelFolder, dtype: str | None) -> int:
    """Bytes that the weights will take on disk."""
    total = 0
    for name in base.tensors.names():
        entry = base.tensors.entry(name)
        old_bits = BY_NAME[entry.dtype].bits
        new_bits = BY_NAME[FILE_DTYPES[dtype]].bits if dtype and BY_NAME[entry.dtype].is_plain_float else old_bits
        total += entry.nbytes * new_bits // old_bits
    return total
