"""What each dial does to each objective's margin, in the base's own eyes: no labels, and nothing is sampled.

The base tells an answer of objective p's good persona from one of its bad persona by the contrast of its own
predictions. At token t of an answer y to a query x that is

    l_p(v) = log p_base(v | x, good persona of p, y_<t) - log p_base(v | x, bad persona of p, y_<t)        each token v

whose sum over the tokens of an answer is the reward of `tuning.self_judge`. With q_o the model whose edits of objective
o alone are in place, at weight 1, and p that without edits, both without persona, the entry of the matrix is

    e[o, p] = mean over answers of  Σ_t Σ_v ( q_o(v | x, y_<t) - p(v | x, y_<t) ) l_p(v)           nats an answer

the change of the expected contrast at each next token, over the base's own answers of both sides to p's queries. It is
that expectation exactly, so what varies is from query to query alone; standard errors are clustered by query. What
it leaves out is how one token leads to other answers.

A base whose personas have several traits each sees them here as well: where a warm persona's answers are longer too, a
dial that makes answers longer makes them look warmer to this base, and rightly has an effect on that margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from alignez_bake.capture.spec import ANSWER_SIDES, CONTEXTS
from alignez_bake.edit_plan import EditPlan
from alignez_bake.language_model.log_probabilities import iter_answer_logits
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.progress import NoProgress
from alignez_bake.tuning.uncertainty import standard_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.capture.sequences import TokenisedPair
    from alignez_bake.capture.spec import Context
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress

    Float64Array = NDArray[np.float64]

MOST_QUERIES: Final = 32
_FLOAT32_BYTES: Final = 4
_KEPT_BYTES: Final = 2**28
"""Bound on what is kept of some answers' predictions while each dial is tried on them."""


class Effect(NamedTuple):
    """A mean in nats an answer, and its standard error clustered by query; None where there is one query alone."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Effects:
    """The matrix e of the module docstring.

    Attributes:
        objectives: names of its rows, the dials, and of its columns, the margins.
        matrix: row o holds what dial o does.
        queries: by objective the number of queries, each with a good and a bad answer.
    """

    objectives: tuple[str, ...]
    matrix: tuple[tuple[Effect, ...], ...]
    queries: Mapping[str, int]

    def cross(self) -> Iterator[tuple[str, str, float]]:
        """For each dial o and other margin p, e[o, p] / e[p, p]: one is what p's own dial does to it."""
        for row, dial in enumerate(self.objectives):
            for column, margin in enumerate(self.objectives):
                own = self.matrix[column][column].value
                if row != column and own:
                    yield dial, margin, self.matrix[row][column].value / own

    def to_json(self) -> dict[str, Any]:
        """The matrix as JSON values."""
        return {
            "unit": "nats per answer",
            "objectives": list(self.objectives),
            "matrix": [[effect._asdict() for effect in row] for row in self.matrix],
            "cross": [{"dial": dial, "margin": margin, "share": share} for dial, margin, share in self.cross()],
            "queries": dict(self.queries),
        }


def measured_effects(
    lm: LanguageModel,
    plan: EditPlan,
    pairs: Mapping[str, Sequence[TokenisedPair]],
    *,
    batch_size: int,
    most_queries: int = MOST_QUERIES,
    progress: Progress | None = None,
) -> Effects:
    """The effect of every objective's dial on every objective's margin.

    Edits of the last position are tried at all positions: within an answer each token was the last one once.

    Args:
        lm: the base; each dial is turned on it by hooks.
        plan: edits of at least one objective.
        pairs: of each of its objectives, with its own personas; at least one each.
        batch_size: sequences that run together.
        most_queries: an even choice of so many queries of each objective.
        progress: counts sequences.
    """
    names = plan.objectives
    dials = [_alone(plan, name) for name in names]
    chosen = {name: _even_choice(pairs[name], most_queries) for name in names}
    columns = []
    total = sum(2 * len(found) for found in chosen.values()) * (len(CONTEXTS) + len(names))
    with (progress or NoProgress()).task("Measuring interference", total) as advance:
        for name in names:
            # The bad answers behind all good ones: answer i belongs to query i modulo their number.
            answers = [_Answer(pair, pair.answers[side]) for side in ANSWER_SIDES for pair in chosen[name]]
            values = np.zeros((len(dials), len(answers)))
            step = _answers_at_a_time(lm, answers, batch_size)
            for first in range(0, len(answers), step):
                some = answers[first : first + step]
                values[:, first : first + step] = _changes(lm, dials, some, batch_size)
                advance(len(some) * (len(CONTEXTS) + len(dials)))
            columns.append([_effect(row, len(chosen[name])) for row in values])
    return Effects(
        names,
        tuple(tuple(column[row] for column in columns) for row in range(len(names))),
        {name: len(found) for name, found in chosen.items()},
    )


def _effect(values: Float64Array, queries: int) -> Effect:
    return Effect(float(values.mean()), standard_error(values, queries) if queries > 1 else None)


class _Answer(NamedTuple):
    """The ids of one answer of a pair."""

    pair: TokenisedPair
    ids: tuple[int, ...]


def _alone(plan: EditPlan, objective: str) -> EditPlan:
    """The edits of one objective, its dial at 1."""
    return EditPlan(tuple(edit for edit in plan.edits if edit.objective == objective), weights={objective: 1.0})


def _even_choice(pairs: Sequence[TokenisedPair], most: int) -> list[TokenisedPair]:
    """One pair a query, of queries that lie evenly among all."""
    of_query = list({pair.name: pair for pair in reversed(pairs)}.values())[::-1]
    count = min(most, len(of_query))
    return [of_query[number * len(of_query) // count] for number in range(count)]


def _answers_at_a_time(lm: LanguageModel, answers: Sequence[_Answer], batch_size: int) -> int:
    """How many answers' contrasts and predictions are kept together."""
    longest = max(len(answer.ids) for answer in answers)
    kept = (len(CONTEXTS) + 3) * longest * lm.vocabulary_size * _FLOAT32_BYTES
    return max(1, min(batch_size, _KEPT_BYTES // kept))


def _changes(lm: LanguageModel, dials: Sequence[EditPlan], answers: Sequence[_Answer], batch_size: int) -> Float64Array:
    """Σ_t Σ_v (q_o - p) l for each dial and answer, [dials, answers]."""
    plain, good, bad = (_log_probabilities(lm, answers, context, batch_size) for context in CONTEXTS)
    before = [rows.exp() for rows in plain]
    contrasts = [one - other for one, other in zip(good, bad, strict=True)]
    del plain, good, bad
    changes = np.zeros((len(dials), len(answers)))
    for row, dial in enumerate(dials):
        with edited_by_hooks(lm.model, lm.architecture, dial, positions="all"):
            after = _log_probabilities(lm, answers, "plain", batch_size)
        for place, (log_q, p, contrast) in enumerate(zip(after, before, contrasts, strict=True)):
            changes[row, place] = float(((log_q.exp() - p) * contrast).sum(dtype=torch.float64))
    return changes


def _log_probabilities(
    lm: LanguageModel, answers: Sequence[_Answer], context: Context, batch_size: int
) -> list[torch.Tensor]:
    """Of each answer float32 [tokens, vocabulary], behind its prompt in a context."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(answers)
    prompts = [answer.pair.prompts[context] for answer in answers]
    for place, logits in iter_answer_logits(lm, prompts, [answer.ids for answer in answers], batch_size=batch_size):
        found[place] = torch.log_softmax(logits, dim=-1)
    return found
