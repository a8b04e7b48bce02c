"""The end of every bake: certificate, card and manifest are written, and the verdict says where the result lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alignez_bake.exporters.output_folder import OURS, publish
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
    from alignez_bake.report.html.page_parts import PageParts
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
    page: PageParts | None = None,
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
        page: what the report shows beside the records; None for no report.
        progress: counts files that are hashed.

    Returns:
        `out` if everything passed, else `OUT.failed`.

    Raises:
        BadInputError: the file of the edits was written into since it was read.
    """
    write_certificate(staging, levels, verdict, refit=refit)
    (staging / "README.md").write_text(card, encoding="utf-8")
    if page is not None:
        _write_report(staging, page)
    # Last, since it is of all other files.
    write_manifest(staging, manifest_of(staging, base, known=known, ways=ways, algorithm=algorithm, progress=progress))
    plan.check_files()
    return publish(staging, out, failed=verdict != "passed")


def _write_report(staging: Path, page: PageParts) -> None:
    # matplotlib takes most of a second to import, and a bake without a report needs none of it.
    from alignez_bake.report.html.of_result import page_of_result  # noqa: PLC0415
    from alignez_bake.report.html.page_parts import REPORT_FILE, write_parts  # noqa: PLC0415

    write_parts(staging, page)
    # Made of what was just written, so that the same page can be made of the result again.
    (staging / OURS / REPORT_FILE).write_text(page_of_result(staging), encoding="utf-8")
