"""How much of an edit's effect its refit keeps, measured with the formula that both are applied by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from alignez_bake.edit import EditTensors, edit_delta
from alignez_bake.refit.record import record_edits, tensors_in_float64
from alignez_bake.refit.report import Explained

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.edit import Edit, Gate
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Advance
    from alignez_bake.refit.record import EditRows

# Share of the whole energy below which a spread is rounding of the sums it is a difference of.
_SMALLEST_SPREAD: Final = 1e-12


class EffectSum:
    """Sums over tokens from which `Explained` follows."""

    def __init__(self) -> None:
        """Nothing summed yet."""
        self._energy, self._residual, self._tokens = 0.0, 0.0, 0
        self._sum: torch.Tensor | None = None

    def add(self, truth: torch.Tensor, fit: torch.Tensor) -> None:
        """Take a batch: float64 [n, d] each."""
        self._energy += float(truth.square().sum())
        self._residual += float((truth - fit).square().sum())
        self._tokens += truth.shape[0]
        total = truth.sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total

    def explained(self) -> Explained:
        """The figures over all batches, of which there is at least one."""
        assert self._sum is not None
        spread = self._energy - float(self._sum.square().sum()) / self._tokens
        return Explained(
            uncentred=1.0 - self._residual / self._energy if self._energy > 0.0 else None,
            centred=1.0 - self._residual / spread if spread > _SMALLEST_SPREAD * self._energy else None,
            rms=(self._energy / self._tokens) ** 0.5,
            residual_rms=(self._residual / self._tokens) ** 0.5,
            tokens=self._tokens,
        )


def hidden_values(edit: Edit, read: torch.Tensor, gate: Gate) -> torch.Tensor:
    """g(Rᵀ r + s), float64 [n, k]: the edit's own formula with L = I, c = 0 and strength 1."""
    _, right, offset, _ = tensors_in_float64(edit, read.device)
    unit = torch.eye(edit.rank, dtype=torch.float64, device=read.device)
    values: torch.Tensor = edit_delta(EditTensors(unit, right, offset, None), gate, 1.0, read)
    return values


class Measured:
    """The effect of one edit against that of its refit, and where that reads the block their pre-activations."""

    def __init__(self, old: Edit, new: Edit) -> None:
        """Nothing summed yet."""
        self.new = new
        self._old = old
        self._effect, self._pre_activation = EffectSum(), EffectSum()

    def add(self, rows: EditRows) -> None:
        """Take a batch."""
        read = rows.block if self.new.reads == "block" else rows.read
        assert read is not None
        self._effect.add(_effect(self._old, rows.read), _effect(self.new, read))
        if self.new.reads == "block":
            before = hidden_values(self._old, rows.read, "identity")
            self._pre_activation.add(before, hidden_values(self.new, read, "identity"))

    def effect(self) -> Explained:
        """Of what the edits add to their site."""
        return self._effect.explained()

    def pre_activation(self) -> Explained | None:
        """Of Rᵀ r + s; None unless the refit reads the block."""
        return self._pre_activation.explained() if self.new.reads == "block" else None


def _effect(edit: Edit, read: torch.Tensor) -> torch.Tensor:
    effect: torch.Tensor = edit_delta(tensors_in_float64(edit, read.device), edit.gate, edit.strength, read)
    return effect


def measure(
    lm: LanguageModel,
    plan: EditPlan,
    refits: Mapping[int, Sequence[Edit]],
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    advance: Advance,
) -> dict[int, list[Measured]]:
    """Compare edits with their refits at every token, while the model runs with the edits of `plan`.

    Args:
        lm: the model.
        plan: the plan before the refit.
        refits: for each place the new edits that are tried there.
        sequences: token ids.
        batch_size: sequences a forward pass.
        advance: told how many sequences have been read.
    """
    measured = {place: [Measured(plan.edits[place], new) for new in tried] for place, tried in refits.items()}

    def add(place: int, rows: EditRows) -> None:
        for one in measured[place]:
            one.add(rows)

    block = any(new.reads == "block" for tried in refits.values() for new in tried)
    record_edits(lm, plan, measured, sequences, add, batch_size=batch_size, advance=advance, block=block)
    return measured
