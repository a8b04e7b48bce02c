"""The run as tables and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from benchmarks.markdown import markdown_table
from benchmarks.onnx_folder import HOOKS, OPTIMUM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.onnx_folder import Made
    from benchmarks.onnx_running import Rates


@dataclass(frozen=True)
class Found:
    """One subject.

    Attributes:
        rates: by batch.
        made: what making it took; None for what runs the checkpoint itself.
        memory: by batch, the most bytes above imports while it generates; empty where it was not measured.
    """

    rates: Mapping[int, Rates]
    made: Made | None
    memory: Mapping[int, int]


def rate_table(found: Mapping[str, Found], batch: int) -> str:
    """Tokens a second, beside torch with hooks and beside optimum's export."""
    rows = []
    for name, subject in found.items():
        row = [name]
        for phase in ("decode", "prefill"):
            rates: tuple[float, ...] = getattr(subject.rates[batch], phase)
            row.append(f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})")
            for other in (HOOKS, OPTIMUM):
                beside = getattr(found[other].rates[batch], phase) if other in found else None
                row.append("" if beside is None else ratio_text(rates, beside))
        rows.append(row)
    columns = ["", "decode, tokens/s", "times hooks", "times optimum"]
    return markdown_table([*columns, "prefill, tokens/s", *columns[2:]], rows)


def ratio_text(rates: Sequence[float], others: Sequence[float]) -> str:
    """Median of the ratios within each round and, in brackets, lowest to highest."""
    ratios = [one / other for one, other in zip(rates, others, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def cost_table(found: Mapping[str, Found], weights: int) -> str:
    """Seconds and memory of making, and memory of running."""
    batches = sorted({batch for subject in found.values() for batch in subject.memory})
    rows = []
    for name, subject in found.items():
        made = subject.made
        making = [""] * 3
        if made is not None:
            making = [f"{made.seconds:.1f}", f"{made.processor:.1f}", f"{made.bytes / weights:.2f}"]
        running = [f"{subject.memory[batch] / weights:.2f}" if batch in subject.memory else "" for batch in batches]
        rows.append([name, *making, *running])
    running_columns = [f"peak of running, batch {batch} / weights" for batch in batches]
    return markdown_table(["", "export, s", "processor time, s", "peak of export / weights", *running_columns], rows)


def plot(found: Mapping[str, Found], file: Path) -> None:
    """Decoded tokens a second of every round."""
    batches = sorted(next(iter(found.values())).rates)
    figure = Figure(figsize=(8, (0.45 * len(found) + 0.9) * len(batches)), layout="constrained")
    names = list(found)[::-1]
    for axes, batch in zip(figure.subplots(len(batches), 1, squeeze=False)[:, 0], batches, strict=True):
        rounds = [found[name].rates[batch].decode for name in names]
        axes.boxplot(rounds, orientation="horizontal", tick_labels=names, whis=(0, 100))
        axes.set_xlim(left=0)
        axes.set_xlabel(f"tokens decoded a second, batch {batch}")
    figure.savefig(file, dpi=100, metadata={"Software": None})
