"""Per layer: what the residual stream says of good and bad answers that nobody asked a persona for.

Read at the output of each decoder layer without a persona, which is what an edit will see, at the last token of
prompt + answer and as the mean over the answer's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.capture.spec import Reading, RowsSpec
from alignez_bake.errors import BadInputError
from alignez_bake.feasibility.separability import cosine, separability
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.prompts.objective import SIDES
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.capture.spec import Tokens
    from alignez_bake.feasibility.separability import Separability
    from alignez_bake.methods.protocol import CaptureFunction

    Float64Array = NDArray[np.float64]

KINDS: Final[tuple[Tokens, ...]] = ("last", "answer_mean")
_LEVEL: Final = 0.05


class LayerFigures(NamedTuple):
    """One layer at one choice of tokens.

    Attributes:
        separability: of held-out pairs.
        cosine: of the mean good and the mean bad activation.
        difference: norm of the difference of these means over the mean of their norms.
    """

    separability: Separability
    cosine: float
    difference: float


@dataclass(frozen=True)
class LayerReport:
    """Both choices of tokens of one layer, by name."""

    layer: int
    figures: dict[str, LayerFigures]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "layer": self.layer,
            **{
                tokens: {
                    "told_apart": found.separability.held_out.as_json(),
                    "p_value": found.separability.p_value,
                    "cosine": found.cosine,
                    "difference": found.difference,
                }
                for tokens, found in self.figures.items()
            },
        }


class BestLayer(NamedTuple):
    """Where held-out pairs are told apart best.

    Attributes:
        layer: its number.
        tokens: the choice of tokens.
        separability: there.
        p_value: for all layers and choices at once (Bonferroni), at most 1.
    """

    layer: int
    tokens: str
    separability: Separability
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether chance is ruled out at 5 %."""
        return self.p_value < _LEVEL


def layer_reports(
    capture: CaptureFunction, layers: Sequence[int], queries: Sequence[str], *, seed: int
) -> tuple[LayerReport, ...]:
    """Record and test all layers.

    Args:
        capture: over the pairs.
        layers: their numbers.
        queries: text of each pair's query; pairs of one query are tested together or not at all.
        seed: of the split.

    Raises:
        BadInputError: pairs of fewer than three queries; activations that are not finite, or the same for all answers.
    """
    held_out = held_out_half(queries, seed)
    specs = {
        (layer, tokens, side): RowsSpec(Site("residual", layer), Reading("plain", "output"), side, tokens)
        for layer in layers
        for tokens in KINDS
        for side in SIDES
    }
    rows = capture(list(specs.values())).rows
    return tuple(
        LayerReport(
            layer,
            {
                tokens: layer_figures(
                    rows[specs[layer, tokens, "good"]].values,
                    rows[specs[layer, tokens, "bad"]].values,
                    held_out,
                    place=f"layer {layer}",
                )
                for tokens in KINDS
            },
        )
        for layer in layers
    )


def layer_figures(good: Float64Array, bad: Float64Array, held_out: Sequence[bool], *, place: str) -> LayerFigures:
    """The figures of activations that are at hand.

    Args:
        good: float64 [pairs, d].
        bad: the same of the bad answers.
        held_out: of each pair, whether the probe is tested on it.
        place: for messages.

    Raises:
        BadInputError: values that are not finite, or the same for all answers.
    """
    for side, values in (("good", good), ("bad", bad)):
        if not np.isfinite(values).all():
            raise BadInputError(
                f"{place}: activations of {side} answers are not finite: the weights or dtype are broken"
            )
    both = np.concatenate([good, bad])
    if not np.ptp(both, axis=0).any():
        raise BadInputError(
            f"{place}: all {len(both)} answers have the same activation, so nothing there can be told apart: the "
            "weights are broken, or the layer does nothing"
        )
    means = good.mean(axis=0), bad.mean(axis=0)
    norms = [float(np.linalg.norm(mean)) for mean in means]
    return LayerFigures(
        separability(good - bad, held_out),
        cosine(*means) if min(norms) > 0 else 0.0,
        2.0 * float(np.linalg.norm(means[0] - means[1])) / sum(norms) if sum(norms) > 0 else 0.0,
    )


def held_out_half(queries: Sequence[str], seed: int) -> list[bool]:
    """Of each pair whether it belongs to the tested half of the distinct queries, the smaller one.

    Raises:
        BadInputError: fewer than three queries.
    """
    distinct = list(dict.fromkeys(queries))
    if len(distinct) < 3:
        raise BadInputError(f"pairs of {len(distinct)} queries cannot be split into a fit and a test: give at least 3")
    order = np.random.default_rng(derived_seed(seed, "feasibility split")).permutation(len(distinct))
    tested = {distinct[place] for place in order[: len(distinct) // 2].tolist()}
    return [query in tested for query in queries]


def best_layer(reports: Sequence[LayerReport]) -> BestLayer:
    """The layer and choice of tokens with the smallest p-value; of equals the first, last token before mean.

    Args:
        reports: at least one.
    """
    tried = [(report, tokens) for report in reports for tokens in report.figures]
    report, tokens = min(tried, key=lambda one: one[0].figures[one[1]].separability.p_value)
    best = report.figures[tokens].separability
    return BestLayer(report.layer, tokens, best, min(1.0, len(tried) * best.p_value))
