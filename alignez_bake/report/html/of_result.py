"""The page of a result folder, from what lies in its `alignez/`: at the end of a bake, and whenever else.

Nothing is measured and no model is run. A result may come from anybody: its records are read as strictly as everywhere
else, and all text in them is escaped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import parents_made
from alignez_bake.report.html.from_record import report_data_from_record
from alignez_bake.report.html.page import report_page
from alignez_bake.report.html.page_parts import REPORT_FILE, PageParts, read_parts
from alignez_bake.report.html.reproduction import commands_of
from alignez_bake.report.record import read_certificate, read_record, read_result_edits
from alignez_bake.safetensors_io.new_file import new_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignez_bake.report.html.report_data import ReportData

TUNING_KEY: Final = "tuning"
"""Where a plan's provenance holds the search that chose it."""
_MARK: Final = '<meta name="generator" content="alignez-bake">'
_MARK_WITHIN: Final = 4096


def page_of_result(result: Path) -> str:
    """The page's HTML; the same folder gives the same text.

    Args:
        result: a result folder, finished or being written.

    Raises:
        BadInputError: not a result, or damaged records.
    """
    record, plan = read_record(result), read_result_edits(result)
    parts = read_parts(result) or PageParts(result.resolve().name)
    data = report_data_from_record(
        record,
        read_certificate(result),
        title=parts.title,
        plan=plan,
        samples=[(sample.query, sample.before, sample.after) for sample in parts.samples],
    )
    data = replace(
        data,
        projections=parts.projections,
        commands=commands_of(record, data.base),
        notes=(*data.notes, *parts.notes),
    )
    return report_page(_with_search(data, record))


def write_page(result: Path, path: Path) -> None:
    """Write the page to a file, whole or not at all.

    Args:
        result: a result folder.
        path: where; another report of this tool is replaced.

    Raises:
        BadInputError: `path` lies in the result, whose manifest covers its files, or is a folder or a file of another
            kind; or as `page_of_result`.
    """
    check_page_path(result, path)
    page = page_of_result(result)
    with parents_made(path), new_file(path) as file:
        file.write(page.encode("utf-8"))


def check_page_path(result: Path, path: Path) -> None:
    """Refuse a place that the page must not take; errors as `write_page`."""
    if path.resolve().is_relative_to(result.resolve()):
        raise BadInputError(f"{path} lies in {result}, whose files are as its manifest says: write the page elsewhere")
    if path.is_dir():
        raise BadInputError(f"{path} is a folder: name a file for the page, such as {path / REPORT_FILE}")
    if path.exists() and not _is_page(path):
        raise BadInputError(f"{path} exists and is no report of alignez-bake, so it is not replaced: name another file")


def _with_search(data: ReportData, record: Mapping[str, Any]) -> ReportData:
    """With the search, if the edits were chosen by one; what cannot be read of it is said, and ends nothing.

    Provenance is free: whoever wrote the edits may mean something else by this key, and a bake takes them all the same.
    """
    provenance = record.get("provenance")
    found = provenance.get(TUNING_KEY) if isinstance(provenance, dict) else None
    if not isinstance(found, dict):
        return data
    # Candidates know their methods, some of which need torch.
    from alignez_bake.report.html.from_tuning import with_tuning  # noqa: PLC0415
    from alignez_bake.tuning.frontier import TuningResult  # noqa: PLC0415

    try:
        return with_tuning(data, TuningResult.from_json(found, "the record of the search"))
    except BadInputError as error:
        return replace(data, notes=(*data.notes, f"The search that the edits record is not shown: {error}."))


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return _MARK.encode() in file.read(_MARK_WITHIN)
