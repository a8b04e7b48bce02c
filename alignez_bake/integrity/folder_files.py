"""All files of a result folder, and which of them matter to whoever loads it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Final

from alignez_bake.exporters.output_folder import OURS

MANIFEST_FILE: Final = f"{OURS}/manifest.json"


def files_in(folder: Path) -> list[str]:
    """Names of all files, sorted, with `/` between folders; but for the manifest itself.

    A link to a folder counts as a file: what it leads to is not the result's.
    """
    found = []
    for place, folders, files in os.walk(folder):
        linked = [name for name in folders if Path(place, name).is_symlink()]
        for name in (*files, *linked):
            relative = os.path.relpath(f"{place}/{name}", folder)
            if relative != MANIFEST_FILE:
                found.append(relative)
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file is hidden or lies in a hidden folder at the top, such as the hub's `.gitattributes`.

    Hubs and version control write such files anew, and nobody loads them.
    """
    return name.startswith(".")


def may_be_added(name: str) -> bool:
    """Whether a file beside those of the bake changes nothing for whoever loads the result.

    The rule of the certificate's level `tensors`: hidden files and what lies in `alignez/` may come. Anything else can
    make another model of the same weights, and code may be run wherever it lies.
    """
    path = PurePosixPath(name)
    return (is_hidden(name) or path.parts[0] == OURS) and path.suffix != ".py"
