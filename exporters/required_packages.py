"""The packages that an exporter needs beside this project's own, asked for before the long work."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence


def require_packages(artefact: str, packages: Sequence[str], way_out: str) -> None:
    """Refuse packages that are not installed; none is imported.

    Args:
        artefact: name of the exporter.
        packages: names as they are imported.
        way_out: the command that installs them.

    Raises:
        BadInputError: those that are missing.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise BadInputError(f"--as {artefact} needs packages that are not installed ({', '.join(missing)}): {way_out}")
