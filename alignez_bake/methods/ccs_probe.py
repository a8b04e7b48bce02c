"""Contrast-consistent search (Burns et al. 2022, arXiv 2212.03827): what tells the texts of a pair apart, unlabelled.

Of m pairs, each of one good and one bad text, x_i and x'_i [d] are the activations, without a word on which is which.
Each of the two classes (all x, all x') is normalised by its own statistics:

    z_i = (x_i - mean(x)) / s        s² = mean ‖x_i - mean(x)‖²        and likewise z'_i, by mean(x') and s'

The mean has d entries, the scale is one number. With a scale for each coordinate the plane w·z = 0 would have another
normal in each class; with one number it is w in both, and an edit needs one direction. Then, with a_i = w·z_i + b,
a'_i = w·z'_i + b and the logistic function σ,

    p_i = σ(a_i), p'_i = σ(a'_i)
    loss(w, b) = mean of (p_i + p'_i - 1)² + min(p_i, p'_i)²                 consistency and confidence
    minimised: loss + (c / m) ‖w‖²

**Gradient.** dσ/da = p (1 - p). Let e_i = p_i + p'_i - 1, and l_i = 1 where p_i <= p'_i, else 0. Then

    g_i  = ∂loss/∂a_i  = 2 (e_i + l_i p_i) p_i (1 - p_i) / m
    g'_i = ∂loss/∂a'_i = 2 (e_i + (1 - l_i) p'_i) p'_i (1 - p'_i) / m
    ∂/∂w = Σ g_i z_i + Σ g'_i z'_i + 2 (c / m) w              ∂/∂b = Σ g_i + Σ g'_i

At p_i = p'_i the minimum of the two has a kink that points upwards, so no minimum of the loss lies on it, and either
side's slope is one of descent.

**Why the penalty.** As soon as the rows are about as wide as there are pairs, almost every assignment of signs to the
pairs can be met by some w, and the loss alone falls to 0 along directions that mean nothing. Burns et al. stop Adam
early, which hides the same choice in the number of steps. As the rows have mean square norm 1, telling m pairs apart at
random needs ‖w‖² in proportion to m, whereas a direction with the share r of the spread needs it in proportion to
1 / r. So c / m lets a shared direction win however many pairs there are.

**Which text comes first.** Burns et al. contrast "x, yes" with "x, no": which of them is true changes from pair to
pair, and normalising each class by itself takes out what "yes" and "no" look like. If all good texts were the first
class and all bad ones the second, it would take out the difference of good and bad itself. So for each pair a seeded
coin says which text comes first (each side in half of the pairs), and the sides are looked at once more at the end: the
normal is turned so that good texts lie above bad ones on average.

**What released code does, and this does not:** normalise one class by the statistics of both or of the other, which
leaves what the forms look like as the easiest contrast; train on each pair in both orders, which makes the classes one
and the same; leave the sign open and report max(accuracy, 1 - accuracy); keep a loss taken before the last step beside
weights taken after it; draw from global random state; take whatever comes out.

**When a probe is of no use** (`CcsProbe.why_useless`). A constant p has the loss (2p - 1)² + p², which is 1/5 at p =
2/5: what is not below that found nothing. And what good answers do not lie above bad ones along, beyond chance, is a
direction of something else. The search knows of no sides, so where its direction has nothing to do with them the pairs
that agree are fair coins (but for the even split of the orders), and the test of `sign_filter` holds here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.methods.sign_filter import LEVEL, fewest_agreeing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.methods.answer_rows import AnswerRows
    from alignez_bake.methods.protocol import JsonValue
    from alignez_bake.site import Site

    Float64Array = NDArray[np.float64]

# c of the module docstring.
_PENALTY: Final = 0.1
# As many as Burns et al. take.
_STARTS: Final = 10
_MOST_STEPS: Final = 500
# Up to rounding.
_CONSTANT_LOSS: Final = 0.2 * (1.0 - 1e-9)
# A spread this small beside the activations is rounding.
_SMALLEST_SHARE: Final = 1e-10
# With one pair a class is its own mean.
_FEWEST_PAIRS: Final = 2


class ContrastProbe(NamedTuple):
    """What the search found; of the pair w, b and the pair -w, -b it is a matter of chance which.

    Attributes:
        weights: w, float64 [d].
        bias: b.
        loss: without the penalty.
        objective: what was minimised, loss and penalty.
        first: p of the first class, float64 [m].
        second: p' of the second class, float64 [m].
    """

    weights: Float64Array
    bias: float
    loss: float
    objective: float
    first: Float64Array
    second: Float64Array


@dataclass(frozen=True)
class CcsProbe:
    """A probe that has been turned towards the good side.

    Attributes:
        normal: unit vector, float64 [d]; good answers lie further along it than bad ones on average.
        loss: of the search, without the penalty.
        objective: with it.
        agreeing: how many pairs have their good answer further along the normal than their bad one.
        pairs: of how many.
        consistency: 1 - mean |p + p' - 1|; 1 where the two answers of each pair contradict each other.
        confidence: mean |p - p'|; 0 where the probe takes no side, 1 where it is certain of each pair.
    """

    normal: Float64Array
    loss: float
    objective: float
    agreeing: int
    pairs: int
    consistency: float
    confidence: float

    @property
    def accuracy(self) -> float:
        """Share of the pairs that agree."""
        return self.agreeing / self.pairs

    def why_useless(self) -> str | None:
        """Why nothing can be learned from it, or None."""
        if not self.objective < _CONSTANT_LOSS:
            return f"its CCS probe does no better than a constant: its loss is {self.loss:.3f}"
        needed = fewest_agreeing(self.pairs, LEVEL)
        if needed is None or self.agreeing < needed:
            return f"its CCS probe agrees with {self.agreeing} of {self.pairs} pairs, which is within chance"
        return None

    def figures(self) -> dict[str, JsonValue]:
        """For reports."""
        return {
            "ccs_loss": self.loss,
            "accuracy": self.accuracy,
            "consistency": self.consistency,
            "confidence": self.confidence,
        }


def ccs_probe(site: Site, rows: AnswerRows, seed: int) -> CcsProbe:
    """The probe of the pairs at one site.

    Args:
        site: for messages, and for seeds of its own.
        rows: one row a pair.
        seed: of the order within pairs and of the starts.

    Raises:
        BadInputError: fewer than 2 pairs, or activations without any spread.
    """
    # What only looks at the methods' names must not load torch.
    from alignez_bake.language_model.sampling import derived_seed  # noqa: PLC0415

    pairs = len(rows.good)
    coin = np.random.default_rng(derived_seed(seed, "ccs order", str(site)))
    good_first = coin.permutation(np.arange(pairs) % 2 == 0)[:, None]
    first = np.where(good_first, rows.good, rows.bad)
    second = np.where(good_first, rows.bad, rows.good)
    found = contrast_probe(site, first, second, seed=derived_seed(seed, "ccs starts", str(site)))
    along = (rows.good - rows.bad) @ found.weights
    sign = -1.0 if along.mean() < 0.0 else 1.0
    return CcsProbe(
        normal=sign * found.weights / np.linalg.norm(found.weights),
        loss=found.loss,
        objective=found.objective,
        agreeing=int(np.count_nonzero(sign * along > 0.0)),
        pairs=pairs,
        consistency=float(1.0 - np.abs(found.first + found.second - 1.0).mean()),
        confidence=float(np.abs(found.first - found.second).mean()),
    )


def contrast_probe(
    site: Site, first: Float64Array, second: Float64Array, *, seed: int, starts: int = _STARTS
) -> ContrastProbe:
    """The search itself, which knows of no sides: the best of several starts by what is minimised.

    The minimum has no part across the rows, since that would cost a penalty and change nothing else; so the search runs
    in the coordinates of the rows' span.

    Args:
        site: for messages.
        first: activations of the first class [m, d].
        second: of the second, in the same order of pairs.
        seed: of the starts; the first n of them are the same for every number of starts.
        starts: how many.

    Raises:
        BadInputError: fewer than 2 pairs, or a class without any spread.
    """
    pairs = len(first)
    if pairs < _FEWEST_PAIRS:
        raise BadInputError(f"{site}: a CCS probe needs at least {_FEWEST_PAIRS} pairs, and there is {pairs}")
    normalised = np.vstack([_normalised(site, first), _normalised(site, second)])
    span = np.linalg.svd(normalised, full_matrices=False)[2].T
    rows = normalised @ span
    rng = np.random.default_rng(seed)
    best: tuple[float, Float64Array] | None = None
    for _ in range(starts):
        weights = rng.normal(size=span.shape[0]) @ span
        weights /= np.sqrt(np.square(rows @ weights).mean())
        found = _minimised(np.append(weights, 0.0), rows[:pairs], rows[pairs:])
        if best is None or found[0] < best[0]:
            best = found
    assert best is not None
    objective, parameters = best
    weights, bias = parameters[:-1], float(parameters[-1])
    p = _sigmoid(rows @ weights + bias)
    loss, _ = ccs_loss(parameters, rows[:pairs], rows[pairs:])
    return ContrastProbe(span @ weights, bias, loss, objective, p[:pairs], p[pairs:])


def ccs_loss(
    parameters: Float64Array, first: Float64Array, second: Float64Array, penalty: float = 0.0
) -> tuple[float, Float64Array]:
    """Loss with penalty, and its gradient, both as derived in the module docstring.

    Args:
        parameters: w and then b, [k + 1].
        first: z [m, k].
        second: z' [m, k].
        penalty: c.

    Returns:
        The value, and the gradient [k + 1].
    """
    pairs = len(first)
    weights, bias = parameters[:-1], parameters[-1]
    p, q = _sigmoid(first @ weights + bias), _sigmoid(second @ weights + bias)
    excess, first_is_lower = p + q - 1.0, p <= q
    value = np.mean(np.square(excess) + np.square(np.minimum(p, q))) + penalty / pairs * (weights @ weights)
    slope_p = 2.0 * (excess + np.where(first_is_lower, p, 0.0)) * p * (1.0 - p) / pairs
    slope_q = 2.0 * (excess + np.where(first_is_lower, 0.0, q)) * q * (1.0 - q) / pairs
    by_weights = slope_p @ first + slope_q @ second + 2.0 * penalty / pairs * weights
    return float(value), np.append(by_weights, slope_p.sum() + slope_q.sum())


def _minimised(start: Float64Array, first: Float64Array, second: Float64Array) -> tuple[float, Float64Array]:
    """The value and the place of the minimum that L-BFGS reaches from a start."""
    import torch  # noqa: PLC0415 - seconds to load; see `ccs_probe`

    parameters = torch.from_numpy(start)
    search = torch.optim.LBFGS(
        [parameters],
        max_iter=_MOST_STEPS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> float:
        value, gradient = ccs_loss(parameters.numpy(), first, second, _PENALTY)
        parameters.grad = torch.from_numpy(gradient)
        return value

    search.step(evaluate)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    place = parameters.numpy()
    return ccs_loss(place, first, second, _PENALTY)[0], place


def _normalised(site: Site, rows: Float64Array) -> Float64Array:
    centred = rows - rows.mean(axis=0)
    scale = np.sqrt(np.square(centred).sum(axis=1).mean())
    if not scale > _SMALLEST_SHARE * np.sqrt(np.square(rows).sum(axis=1).mean()):
        raise BadInputError(
            f"{site}: all activations are the same, so there is nothing for a CCS probe to tell apart: leave this "
            "layer out with --layers, or use pairs whose answers differ"
        )
    normalised: Float64Array = centred / scale
    return normalised


def _sigmoid(logits: Float64Array) -> Float64Array:
    # By the hyperbolic tangent, which does not overflow.
    probabilities: Float64Array = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return probabilities
