"""What the page needs beside this project's own packages, asked for before the long work."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from alignez_bake.errors import BadInputError

_PACKAGES: Final = ("matplotlib", "jinja2")


def missing_report_packages() -> str:
    """Which are not installed, and the command that installs them; empty where all are. Nothing is imported."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed (pip install {' '.join(missing)})" if missing else ""


def require_report_packages() -> None:
    """Refuse to begin where the page could not be made.

    Raises:
        BadInputError: what is missing, and the command that installs it.
    """
    if missing := missing_report_packages():
        raise BadInputError(f"the report cannot be made: {missing}")


def page_wanted(*, asked: bool | None, by_default: bool) -> tuple[bool, tuple[str, ...]]:
    """Whether a bake makes the page, and what must be said where it cannot.

    Args:
        asked: whether the user wants it; None: as it comes.
        by_default: whether it then is made.

    Returns:
        The answer, and at most one note for whoever reads what the bake did.

    Raises:
        BadInputError: it is asked for, and a package is missing.
    """
    if asked:
        require_report_packages()
        return True, ()
    if asked is False or not by_default:
        return False, ()
    missing = missing_report_packages()
    return not missing, (f"no report.html: {missing}",) if missing else ()
