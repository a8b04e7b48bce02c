"""What a check found: passed, failed, or unable to tell."""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol

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
