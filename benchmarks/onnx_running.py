"""Timing of subjects that take turns, and the memory that each needs alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.progress import Progress
    from benchmarks.onnx_subjects import Subject

TOLERANCE: Final = {"float32": 1e-3, "float16": 5e-2}
"""How far logits of subjects may lie apart, relative: wide enough for any order of sums, far below another model's."""


@dataclass(frozen=True)
class Rates:
    """Tokens a second of one subject, one entry a round.

    Attributes:
        prefill: tokens of the prompts, all rows together.
        decode: new tokens, all rows together, of the median token of the round.
    """

    prefill: tuple[float, ...]
    decode: tuple[float, ...]


def prompt(vocabulary: int, batch: int, tokens: int) -> NDArray[np.int64]:
    """Random ids [batch, tokens]."""
    return np.random.default_rng(batch).integers(3, vocabulary, (batch, tokens))


def check_agreement(subjects: Mapping[str, Subject], ids: NDArray[np.int64], tolerance: float) -> dict[str, float]:
    """How far the logits of each subject lie from those of the first: all run the same function.

    Returns:
        Relative, normwise, by name; 0 for the first.

    Raises:
        SystemExit: one of them runs another function.
    """
    logits = {name: subject.start(ids) for name, subject in subjects.items()}
    first = next(iter(logits.values()))
    apart = {name: float(np.linalg.norm(found - first) / np.linalg.norm(first)) for name, found in logits.items()}
    wrong = [f"{name} ({error:.1e})" for name, error in apart.items() if not error <= tolerance]
    if wrong:
        raise SystemExit(f"not the logits of {next(iter(logits))}, so not to be compared: {', '.join(wrong)}")
    return apart


def measure(
    subjects: Mapping[str, Subject], ids: NDArray[np.int64], *, tokens: int, rounds: int, progress: Progress
) -> dict[str, Rates]:
    """Let the subjects take turns, token by token, every second time backwards; the first round is not counted.

    Args:
        subjects: by name.
        ids: prompts [batch, length].
        tokens: that are decoded in each round.
        rounds: that are counted.
        progress: counts rounds.
    """
    prefill: dict[str, list[float]] = {name: [] for name in subjects}
    decode: dict[str, list[float]] = {name: [] for name in subjects}
    with progress.task(f"batch {len(ids)}", rounds + 1) as advance:
        for number in range(rounds + 1):
            seconds: dict[str, list[float]] = {name: [] for name in subjects}
            for name in list(subjects)[:: -1 if number % 2 else 1]:
                start = time.perf_counter()
                subjects[name].start(ids)
                prefill[name].append(ids.size / (time.perf_counter() - start))
            for step in range(tokens):
                for name in list(subjects)[:: -1 if step % 2 else 1]:
                    start = time.perf_counter()
                    subjects[name].token()
                    seconds[name].append(time.perf_counter() - start)
            for name in subjects:
                decode[name].append(len(ids) / median(seconds[name]))
            advance()
    return {name: Rates(tuple(prefill[name][1:]), tuple(decode[name][1:])) for name in subjects}
