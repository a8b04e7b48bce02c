"""What a check found: passed, failed, or unable to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from alignez_bake.errors import CheckFailedError

if TYPE_CHECKING:
    from pathlib import Path

Verdict = Literal["passed", "failed", "inconclusive"]
Level = Literal["tensors", "forward"]

# Below this share of the edit that survives rounding, a bake is not what was asked for.
MIN_DELIVERED_SHARE: Final = 0.9


class LevelCertificate(Protocol):
    """One level of a certificate."""

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


def worst(verdicts: list[Verdict]) -> Verdict:
    """One verdict for all: failed before inconclusive before passed."""
    for verdict in ("failed", "inconclusive"):
        if verdict in verdicts:
            return verdict
    return "passed"


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
    def verdict(self) -> Verdict:
        """The worst of the levels' verdicts."""
        return worst([level.verdict for level in self.levels])

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line each for what went wrong at any level."""
        return tuple(reason for level in self.levels for reason in level.reasons)

    def raise_if_failed(self) -> None:
        """Raise unless every level passed.

        Raises:
            CheckFailedError: the message gives the reasons and where the result lies.
        """
        if self.verdict != "passed":
            reasons = "; ".join(self.reasons)
            raise CheckFailedError(f"the certificate is {self.verdict}: {reasons}; the result lies in {self.path}")

    def result_path(self) -> Path:
        """Where the result lies."""
        return self.path

    def certificate_json(self) -> dict[str, Any]:
        """Path, verdict and figures as JSON values."""
        return {
            "out": str(self.path),
            "verdict": self.verdict,
            "certificate": {level.level: level.to_json() for level in self.levels},
        }
