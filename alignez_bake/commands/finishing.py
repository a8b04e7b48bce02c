"""The end of every bake: certificate, card and manifest are written, and the verdict says where the result lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alignez_bake.exporters.output_folder import publish
from alignez_bake.integrity.hashing import DEFAULT
from alignez_bake.integrity.manifest import write_manifest
from alignez_bake.integrity.measure import manifest_of
from alignez_bake.report.record import write_certificate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignez_bake.certificate.verdict import LevelCertificate, Verdict
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.integrity.hashing import Algorithm
    from alignez_bake.integrity.manifest import Manifest
    from alignez_bake.progress import Progress
    from alignez_bake.streaming.written import Way

SPARE_BYTES: Final = 16 * 1024 * 1024
"""Room for records, certificate, card and the copied small files, beside the artefact."""


def finish(
    staging: Path,
    out: Path,
    levels: Sequence[LevelCertificate],
    verdict: Verdict | None,
    card: str,
    *,
    plan: EditPlan,
    base: Path,
    known: Manifest | None = None,
    ways: Mapping[str, Way] | None = None,
    algorithm: Algorithm = DEFAULT,
    refit: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write what is known once a result is checked, and move it to its place.

    Args:
        staging: the result being written, complete but for certificate, card and manifest.
        out: where it was asked for.
        levels: what was checked.
        verdict: of all of it.
        card: text of the model card.
        plan: the edits that were asked for.
        base: folder of what it was made from.
        known: entries of the manifest that were made while files were written.
        ways: how files came that share the base's blocks, by name.
        algorithm: of the manifest's hashes.
        refit: as in `write_certificate`.
        progress: counts files that are hashed.

    Returns:
        `out` if everything passed, else `OUT.failed`.

    Raises:
        BadInputError: the file of the edits was written into since it was read.
    """
    write_certificate(staging, levels, verdict, refit=refit)
    (staging / "README.md").write_text(card, encoding="utf-8")
    # Last, since it is of all other files.
    write_manifest(staging, manifest_of(staging, base, known=known, ways=ways, algorithm=algorithm, progress=progress))
    plan.check_files()
    return publish(staging, out, failed=verdict != "passed")
