"""Files that a model names or links to: there, regular, and where they may lie, or not opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def inside_folders(path: Path, homes: Iterable[Path], place: str) -> Path:
    """The file itself, every link followed.

    Args:
        path: the file.
        homes: the folders in one of which it must lie, already without links.
        place: what it is, for messages.

    Raises:
        BadInputError: missing, no regular file, or elsewhere.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        raise BadInputError(f"{place} is missing: copy it too, beside the graph") from None
    if not any(real.is_relative_to(home) for home in homes):
        raise BadInputError(
            f"{place} is a link to {real}, out of the model's folder, and is not opened: put the file itself there"
        )
    if not real.is_file():
        raise BadInputError(f"{place} is not a regular file")
    return real
