"""Text from files in messages.

The layers that read safetensors have the same function; theirs comes with packages that the runner does without.
"""

from __future__ import annotations

from typing import Final

_SHOWN: Final = 120


def shown(value: object) -> str:
    """A value from a file, fit for a one-line message: escaped and cut to 120 characters."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
