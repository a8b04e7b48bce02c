"""Finer rungs: what is tried beside the best of the first candidates.

Method and strength decide most; layers, rank and λ move the result by a few points, which way depends on the base. So
they are looked at where the first round has shown the way, and nowhere else:

    strength      the others that the ladder has for the method
    layers        the upper half, whose streams hold what is about to be said; the last one where a method reads out
    rank and λ    both that bound the fit, as the method has them beside its defaults: a looser one
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alignez_bake.methods.protocol import ReadsOut, ReducedRank

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.tuning.candidate import Candidate


@dataclass(frozen=True)
class FinerRungs:
    """What may be varied: whatever the user has not fixed.

    Attributes:
        strengths: by name of a method.
        rank: whether the rank is open.
        penalty: whether λ is.
        layers: whether the layers are.
    """

    strengths: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rank: bool = True
    penalty: bool = True
    layers: bool = True

    def beside(self, candidate: Candidate) -> list[Candidate]:
        """Candidates that differ from one in strength, in layers, or in what bounds the fit."""
        method, settings, layers = candidate.method, candidate.settings, candidate.layers
        found = []
        if self.layers and len(layers) > 1:
            rest = layers[-1:] if isinstance(method, ReadsOut) else layers[len(layers) // 2 :]
            found.append(replace(candidate, name=f"{candidate.name}-{_layers_name(rest)}", layers=rest))
        found += [
            replace(candidate, name=candidate_name(method.name, value), settings=replace(settings, strength=value))
            for value in self.strengths.get(method.name, ())
            if value != settings.strength
        ]
        if isinstance(method, ReducedRank) and (self.rank or self.penalty):
            rank = method.other_rank if self.rank else settings.rank
            penalty = method.other_penalty if self.penalty else settings.penalty
            name = (
                candidate.name
                + (f"-rank{rank}" if self.rank else "")
                + (f"-penalty{penalty:g}" if self.penalty else "")
            )
            found.append(replace(candidate, name=name, settings=replace(settings, rank=rank, penalty=penalty)))
        return found

    def as_json(self) -> dict[str, Any]:
        """What a dry run tells."""
        return {
            "strengths": {name: list(values) for name, values in self.strengths.items()},
            "rank": self.rank,
            "penalty": self.penalty,
            "layers": self.layers,
        }


def candidate_name(method: str, strength: float) -> str:
    """Such as `ridge-1.5`: of a file, too."""
    return f"{method}-{strength:g}"


def _layers_name(layers: tuple[int, ...]) -> str:
    return f"layer{layers[0]}" if len(layers) == 1 else f"layers{layers[0]}to{layers[-1]}"
