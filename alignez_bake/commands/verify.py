"""`verify`: measure the certificate of a result again, on any machine that has the base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.certificate.tensors import certify_tensors
from alignez_bake.certificate.verdict import LevelCertificate, Verdict, worst
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.exporters.registry import exporter_named
from alignez_bake.lowering.decide import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import read_record, read_result_edits, recorded_base

if TYPE_CHECKING:
    from alignez_bake.certificate.verdict import Level
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class VerifyResult:
    """What a new measurement found."""

    path: Path
    levels: tuple[LevelCertificate, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the levels' verdicts."""
        return worst([level.verdict for level in self.levels])

    def raise_if_failed(self) -> None:
        """Raise unless every level passed.

        Raises:
            CheckFailedError: the message gives the reasons.
        """
        if self.verdict != "passed":
            reasons = "; ".join(reason for level in self.levels for reason in level.reasons)
            raise CheckFailedError(f"{self.path} is {self.verdict}: {reasons}")

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "out": str(self.path),
            "verdict": self.verdict,
            "certificate": {level.level: level.to_json() for level in self.levels},
        }


def verify(
    out: str | Path,
    model: str | Path | None = None,
    *,
    level: Level = "forward",
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> VerifyResult:
    """Compare a result with its base and its edits again.

    Args:
        out: the result folder.
        model: the base's folder; where the result was baked unless given.
        level: `tensors` compares files and runs nothing; `forward` also runs baked and hooked model.
        device: for `forward`.
        trust_remote_code: for `forward`, passed to transformers' loader.
        progress: where to say how far it is.

    Raises:
        BadInputError: not a result, damaged files, no base, or another base than the one it was made from.
    """
    out = Path(out)
    model = None if model is None else Path(model)
    record = read_record(out)
    plan = read_result_edits(out)
    result = open_model_folder(out)
    base = open_model_folder(recorded_base(out) if model is None else model)
    _check_recorded_base(record, base, out)
    lowering = lower(plan, base, exporter_named(str(record.get("artefact"))))
    lowering.require_complete()
    levels: list[LevelCertificate] = [certify_tensors(base, result, lowering, progress=progress)]
    if level == "forward":
        # Imports torch and transformers, which the other level does without.
        from alignez_bake.certificate.forward import certify_forward  # noqa: PLC0415

        levels.append(
            certify_forward(base, result, plan, device=device, trust_remote_code=trust_remote_code, progress=progress)
        )
    return VerifyResult(out, tuple(levels))


def _check_recorded_base(record: dict[str, Any], base: ModelFolder, out: Path) -> None:
    recorded = record.get("base")
    fingerprint = base.fingerprint
    if not isinstance(recorded, dict) or any(
        recorded.get(name) != getattr(fingerprint, name) for name in ("model_type", "config_sha256", "tensors_sha256")
    ):
        raise BadInputError(f"{base.path} is not the base that {out} was made from: name the right one with --model")
