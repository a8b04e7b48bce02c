"""`verify`: a result against its manifest, and its certificate measured again where the base is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from alignez_bake.certificate.verdict import Certified, worst
from alignez_bake.commands.bake import checked_level
from alignez_bake.commands.base import opened_base
from alignez_bake.commands.opened import base_of, exporter_of, is_patched, result_with_base
from alignez_bake.commands.recorded_graph import recorded_graph
from alignez_bake.errors import BadInputError
from alignez_bake.integrity.check import check_manifest
from alignez_bake.integrity.folder_files import MANIFEST_FILE
from alignez_bake.integrity.manifest import has_manifest
from alignez_bake.progress import NoProgress
from alignez_bake.report.record import recorded_base

if TYPE_CHECKING:
    from alignez_bake.certificate.verdict import Level, LevelCertificate, Verdict
    from alignez_bake.integrity.check import ManifestCheck
    from alignez_bake.progress import Progress

VerifyLevel = Literal["manifest", "tensors", "forward"]

_OF_TENSORS: Final = "level tensors, that edited weights are the formula's and all else is the base's"
_OF_FORWARD: Final = "level forward, that it runs as the base with its edits does"


@dataclass(frozen=True)
class VerifyResult(Certified):
    """What a new measurement found.

    Attributes:
        manifest: the result against its own manifest; None of a result of an earlier version, which has none.
    """

    manifest: ManifestCheck | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The worst of manifest and levels."""
        return worst([*([] if self.manifest is None else [self.manifest.verdict]), *_verdicts(self.levels)])

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line each for what went wrong; the levels' come first, since they know what changed in which tensor."""
        return (*super().reasons, *(() if self.manifest is None else self.manifest.reasons))

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**self.certificate_json(), "manifest": None if self.manifest is None else self.manifest.to_json()}


def verify(
    out: str | Path,
    model: str | Path | None = None,
    *,
    base_onnx: str | Path | None = None,
    level: VerifyLevel | None = None,
    allow_pickle: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> VerifyResult:
    """Compare a result with its manifest, and with its base and its edits; one that fails anywhere is not run.

    Where the base is gone and no level is asked for, the manifest alone is checked, and the result says what was not.

    Args:
        out: the result folder.
        model: the base's folder or hub id; unless given where it lay at baking, or what the hub's cache has of it. A
            patched graph is compared with its model only if it is given.
        base_onnx: of a patched graph, the folder of the graph that it was made from; where it lay unless given.
        level: `manifest` needs no base; `tensors` compares files and runs nothing; `forward` also runs baked and
            hooked model; the highest that there is for the kind of artefact unless given.
        allow_pickle: read a base of pickled weights, by torch's weights-only loader; others refuse it.
        device: for `forward`.
        trust_remote_code: for `forward`, passed to transformers' loader.
        progress: where to say how far it is.

    Raises:
        BadInputError: not a result, no base for a level that is asked for, another base than the one it was made
            from, or damaged files of a result without a manifest.
    """
    out = Path(out)
    progress = progress or NoProgress()
    manifest = check_manifest(out, progress=progress) if has_manifest(out) else None
    if level == "manifest":
        if manifest is None:
            raise BadInputError(f"{out} has no {MANIFEST_FILE}: use --level tensors")
        limit = "--level manifest was asked for"
        return VerifyResult(out, (), manifest.without(f"{_OF_TENSORS}: {limit}", f"{_OF_FORWARD}: {limit}"))
    if manifest is not None and (why := why_no_base(out, model, base_onnx)) is not None:
        if level is not None:
            raise BadInputError(f"{why}; or check the result alone with --level manifest")
        return VerifyResult(out, (), manifest.without(f"{_OF_TENSORS}: {why}", f"{_OF_FORWARD}: it needs the base too"))
    unchanged = manifest is None or manifest.verdict == "passed"
    try:
        levels = _levels(
            out,
            model,
            base_onnx=base_onnx,
            level=level,
            may_run=unchanged,
            allow_pickle=allow_pickle,
            device=device,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    except BadInputError as error:
        # What was changed after the bake may be too damaged to be compared; it is named already.
        if manifest is None or unchanged:
            raise
        return VerifyResult(out, (), manifest.without(f"{_OF_TENSORS}: {error}"))
    return VerifyResult(out, levels, manifest)


def why_no_base(out: Path, model: str | Path | None = None, base_onnx: str | Path | None = None) -> str | None:
    """Why the base of a result is not at hand; None where one was named, or lies where the record says.

    A record that cannot be read says of no base that it is gone: reading it again tells what is wrong.
    """
    try:
        patched = is_patched(out)
    except BadInputError:
        return None
    if base_onnx is not None or (model is not None and not patched):
        return None
    try:
        _ = recorded_graph(out) if patched else recorded_base(out)
    except BadInputError as error:
        return str(error)
    return None


def _levels(
    out: Path,
    model: str | Path | None,
    *,
    base_onnx: str | Path | None,
    level: Level | None,
    may_run: bool,
    allow_pickle: bool,
    device: str,
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[LevelCertificate, ...]:
    """The certificate, measured again; level `forward` only if the result may be run."""
    if is_patched(out):
        from alignez_bake.commands.verify_patched import verify_patched  # noqa: PLC0415 - needs onnx

        of_graph = verify_patched(
            out,
            None if base_onnx is None else Path(base_onnx),
            model,
            level=(level or "forward") if may_run else "tensors",
            device=device,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        return tuple(of_graph)
    if base_onnx is not None:
        raise BadInputError(f"--base-onnx is for patched graphs, and {out} is none: leave it out")
    folder, fp8 = base_of(out, model), exporter_of(out).reads_fp8
    with opened_base(folder, None, fp8=fp8, allow_pickle=allow_pickle, progress=progress) as base:
        opened = result_with_base(out, base)
        exporter, lowering = opened.exporter, opened.lowering
        if level is None:
            level = exporter.highest_level if base.fp8_blocks is None else "tensors"
        level = checked_level(exporter, level, base)
        levels = [exporter.certify_tensors(base, lowering, out, progress)]
        # What is not as it was written may be anybody's, its code included: it is not run.
        if level == "forward" and may_run and levels[0].verdict != "failed":
            running = exporter.reload(base, out, lowering, device=device, trust_remote_code=trust_remote_code)
            levels.append(running.certify(progress))
        return tuple(levels)


def _verdicts(levels: tuple[LevelCertificate, ...]) -> list[Verdict]:
    return [level.verdict for level in levels]
