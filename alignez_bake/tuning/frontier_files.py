"""The edits of a search's other candidates, kept beside the chosen ones: `edits.frontier/NAME.safetensors`.

With them another point of the frontier is baked without fitting anything again: `bake --point NAME`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from alignez_bake.edit_plan import EditPlan

SUFFIX: Final = ".frontier"
_EDITS: Final = ".safetensors"


def frontier_folder(edits: Path) -> Path:
    """Where the candidates of an edit file lie: `edits.frontier` beside `edits.safetensors`."""
    return edits.with_suffix(SUFFIX)


def write_frontier(edits: Path, frontier: Mapping[str, EditPlan]) -> None:
    """Write candidates beside an edit file, all or none; nothing where there are none.

    Args:
        edits: the edit file.
        frontier: plans by name of the candidate, which `offered.candidate_name` made fit for a file.
    """
    if not frontier:
        return
    folder = frontier_folder(edits)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        growing = Path(scratch) / "new"
        growing.mkdir()
        for name, plan in frontier.items():
            write_edits(plan, growing / f"{name}{_EDITS}")
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        growing.rename(folder)


def check_frontier_replaceable(edits: Path) -> None:
    """Refuse to replace a folder that holds anything but edits.

    Raises:
        BadInputError: it does; the message names what.
    """
    folder = frontier_folder(edits)
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise BadInputError(f"{folder}, where the other candidates would lie, exists and is no folder: remove it")
    for entry in sorted(folder.iterdir()):
        if entry.suffix != _EDITS or entry.is_symlink() or not entry.is_file():
            raise BadInputError(f"{folder} would be replaced, but holds {entry.name}, which is no edit file: remove it")
        read_edits(entry)


def remove_frontier(edits: Path) -> None:
    """Remove candidates that belong to an edit file that was replaced."""
    if frontier_folder(edits).is_dir():
        shutil.rmtree(frontier_folder(edits))


def point_file(edits: Path, point: str) -> Path:
    """Where the candidate of a name lies, which `edits_at_point` or a listing has seen: `edits.frontier/NAME`."""
    return frontier_folder(edits) / f"{point}{_EDITS}"


def points_among(files: Iterable[str]) -> list[str]:
    """Names of the candidates among the files of such a folder."""
    return sorted(name.removesuffix(_EDITS) for name in files if name.endswith(_EDITS))


def points_beside(edits: Path) -> list[str]:
    """Names of the candidates beside an edit file."""
    folder = frontier_folder(edits)
    return points_among(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def no_such_point(point: str, edits: str, names: Sequence[str]) -> BadInputError:
    """The error that lists those that there are.

    Args:
        point: what was asked for.
        edits: the edit file of the search, or where it was found.
        names: of the candidates.
    """
    there = f"it has {', '.join(map(shown, names))}" if names else "no candidates lie beside it"
    return BadInputError(f"--point {shown(point)} is no candidate of {edits}: {there}")


def edits_at_point(edits: Path, point: str) -> Path:
    """The file of a candidate's edits.

    Args:
        edits: the edit file of the search.
        point: name of the candidate.

    Raises:
        BadInputError: there is no such candidate; the message lists those that there are.
    """
    names = points_beside(edits)
    # Compared with what is there, never joined to a path unseen.
    if point not in names:
        raise no_such_point(point, str(edits), names)
    return point_file(edits, point)
