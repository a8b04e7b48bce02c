"""`verify`: measure the certificate of a result again, on any machine that has the base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.certificate.verdict import Certified
from alignez_bake.commands.bake import checked_level
from alignez_bake.commands.opened import is_patched, open_result
from alignez_bake.errors import BadInputError
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from alignez_bake.certificate.verdict import Level
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class VerifyResult(Certified):
    """What a new measurement found."""

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return self.certificate_json()


def verify(
    out: str | Path,
    model: str | Path | None = None,
    *,
    base_onnx: str | Path | None = None,
    level: Level | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> VerifyResult:
    """Compare a result with its base and its edits again; one that fails level `tensors` is not run.

    Args:
        out: the result folder.
        model: the base's folder or hub id; unless given where it lay at baking, or what the hub's cache has of it. A
            patched graph is compared with its model only if it is given.
        base_onnx: of a patched graph, the folder of the graph that it was made from; where it lay unless given.
        level: `tensors` compares files and runs nothing; `forward` also runs baked and hooked model; the highest
            that there is for the kind of artefact unless given.
        device: for `forward`.
        trust_remote_code: for `forward`, passed to transformers' loader.
        progress: where to say how far it is.

    Raises:
        BadInputError: not a result, damaged files, no base, or another base than the one it was made from.
    """
    out = Path(out)
    progress = progress or NoProgress()
    if is_patched(out):
        from alignez_bake.commands.verify_patched import verify_patched  # noqa: PLC0415 - needs onnx

        of_graph = verify_patched(
            out,
            None if base_onnx is None else Path(base_onnx),
            model,
            level=level or "forward",
            device=device,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        return VerifyResult(out, tuple(of_graph))
    if base_onnx is not None:
        raise BadInputError(f"--base-onnx is for patched graphs, and {out} is none: leave it out")
    opened = open_result(out, model)
    base, exporter, lowering = opened.base, opened.exporter, opened.lowering
    level = checked_level(exporter, exporter.highest_level if level is None else level)
    levels = [exporter.certify_tensors(base, lowering, out, progress)]
    # What is not as it was written may be anybody's, its code included: it is not run.
    if level == "forward" and levels[0].verdict != "failed":
        running = exporter.reload(base, out, lowering, device=device, trust_remote_code=trust_remote_code)
        levels.append(running.certify(progress))
    return VerifyResult(out, tuple(levels))
