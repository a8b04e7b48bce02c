"""What a check found: passed, failed, or unable to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from alignez_bake.errors import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

Verdict = Literal["passed", "failed", "inconclusive"]
Level = Literal["tensors", "forward"]

# Below this share of the edit that survives rounding, a bake is not what was asked for.
MIN_DELIVERED_SHARE: Final = 0.9


class LevelCertificate(Protocol):
    """One level of a certificate; what it shows to people it may say itself, as `SaysMainFigures`."""

    @property
    def level(self) -> Level:
        """Which level."""
        ...

    @property
    def verdict(self) -> Verdict:
        """What was found."""
        ...

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line each for what went wrong."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        ...


@runtime_checkable
class SaysMainFigures(Protocol):
    """A certificate that says which of its figures people are shown."""

    def main_figures(self) -> list[tuple[str, str]]:
        """Name and value of each, beside verdict and reasons."""
        ...


def main_figures(level: LevelCertificate) -> list[tuple[str, str]]:
    """Name and value of what tables and model cards show of a certificate, beside its verdict and reasons.

    One that does not say shows what all of level `tensors` have in common, or, at another level, all single figures:
    certificates of exporters that others wrote are shown as well.
    """
    if isinstance(level, SaysMainFigures):
        return level.main_figures()
    figures = level.to_json()
    if level.level == "tensors":
        return tensors_figures(figures)
    return [
        (name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
        for name, value in figures.items()
        if name not in ("level", "verdict") and isinstance(value, str | int | float)
    ]


def worst(verdicts: Sequence[Verdict]) -> Verdict | None:
    """One verdict for all: failed before inconclusive before passed; None of none."""
    order: tuple[Verdict, ...] = ("failed", "inconclusive", "passed")
    return next((verdict for verdict in order if verdict in verdicts), None)


def lowest_share(shares: Iterable[float | None]) -> float | None:
    """The smallest delivered share; None where no tensor changed."""
    return min((share for share in shares if share is not None), default=None)


def tensors_json(
    level: LevelCertificate, *, edited: int, untouched: int, lowest_delivered_share: float | None
) -> dict[str, Any]:
    """What level `tensors` says of every kind of artefact, as JSON values; a kind adds figures of its own.

    Args:
        level: the certificate.
        edited: number of tensors, modules or edits that were compared with the formula.
        untouched: number of tensors that must equal the base's.
        lowest_delivered_share: see `lowest_share`.
    """
    return {
        "level": level.level,
        "verdict": level.verdict,
        "reasons": list(level.reasons),
        "edited_tensors": edited,
        "untouched_tensors": untouched,
        "lowest_delivered_share": lowest_delivered_share,
        "required_delivered_share": MIN_DELIVERED_SHARE,
    }


def tensors_figures(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The main figures of what `tensors_json` gives; with `inserted_tensors`, the number of those parameters."""
    share, inserted = figures["lowest_delivered_share"], figures.get("inserted_tensors")
    return [
        ("edited tensors = formula", str(figures["edited_tensors"])),
        ("other tensors = base", str(figures["untouched_tensors"])),
        *([("inserted parameters = edits", str(inserted))] if inserted else []),
        ("lowest delivered share", "none changed" if share is None else f"{share:.4f}"),
    ]


@dataclass(frozen=True)
class Certified:
    """A result with its certificate.

    Attributes:
        path: where the result lies.
        levels: the certificate, level by level; none of them where nothing was checked.
    """

    path: Path
    levels: tuple[LevelCertificate, ...]

    @property
    def verdict(self) -> Verdict | None:
        """The worst of the levels' verdicts; None where nothing was checked."""
        return worst([level.verdict for level in self.levels])

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line each for what went wrong at any level."""
        return tuple(reason for level in self.levels for reason in level.reasons)

    def raise_if_failed(self) -> None:
        """Raise if any level did not pass; where nothing was checked, nothing failed.

        Raises:
            CheckFailedError: the message gives the reasons and where the result lies.
        """
        if self.verdict not in (None, "passed"):
            reasons = "; ".join(self.reasons)
            raise CheckFailedError(f"the certificate is {self.verdict}: {reasons}; the result lies in {self.path}")

    def result_path(self) -> Path:
        """Where the result lies."""
        return self.path

    def certificate_json(self) -> dict[str, Any]:
        """Path, verdict (null where nothing was checked) and figures as JSON values."""
        return {
            "out": str(self.path),
            "verdict": self.verdict,
            "certificate": {level.level: level.to_json() for level in self.levels},
        }
