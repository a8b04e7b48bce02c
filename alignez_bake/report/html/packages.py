"""What the page needs beside this project's own packages, asked for before the long work."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from alignez_bake.errors import BadInputError

_PACKAGES: Final = ("matplotlib", "jinja2")


def require_report_packages() -> None:
    """Refuse to begin where the page could not be made; no package is imported.

    Raises:
        BadInputError: those that are missing, and the command that installs them.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise BadInputError(
            f"report.html needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'alignez-bake[report]'"
        )
