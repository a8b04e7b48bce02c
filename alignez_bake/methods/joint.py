"""Objectives fitted together, so that the edits of each do their work where it is that objective's to decide.

A persona rarely has one trait alone: a warm assistant is a wordier one too. What an objective's two personas do to the
base at token t is then a mixture. With a_p(t) the difference that trait p makes, which is not 0 at the tokens T_p alone
where that trait is decided,

    d_o(t) = Σ_p λ_op a_p(t),   λ_oo = 1                                                                       (1)

and a map that predicts d_o, fitted to o's pairs alone, moves trait p by λ_op as often as its own dial is turned.

The objectives themselves say which token is whose. Let JSD_o(t) be how far o's personas disagree about the next token
(`capture.weights`). For small differences the Jensen-Shannon divergence is quadratic in them (an eighth of the Fisher
norm), so by (1), where t lies in T_p and in no other,

    JSD_o(t) / JSD_p(t) ≈ λ_op²

and 1 or more where p disagrees no more than o does. So all objectives are fitted over the same tokens, those of all
their pairs, each token read under the personas of every objective, and row t of o's D is multiplied by

    s_o(t) = min(1, JSD_o(t) / max_{p ≠ o} JSD_p(t))²

besides its weight of disagreement. What is left of trait p in o's target is λ_op · λ_op⁴ = λ_op⁵ (a leak of 0.4
becomes 0.01), and at o's own tokens, where it disagrees most, nothing changes: s_o = 1. Rows that are not o's stay in
the fit with a target near 0, so that the map learns to leave them alone. That is all: the ridge itself, its rank and
penalty are those of `methods.ridge` and `methods.residual_ridge`, which are given another capture.

Where two objectives are decided at one token, the one that disagrees less there loses strength, by the square as well.
A dial makes up for that, being linear; what one dial does to another's trait no setting of dials can undo exactly. So
of powers of the ratio the second was taken, not the first.

Traits that are decided at the very same tokens, about as strongly, are not told apart by this; the measured effects
(`interference.effects`) say so. docs/decisions/objectives.md has the figures, and those of other ways: projecting the
outputs off each other, stacking others' tokens with a target of 0, decorrelating the maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.capture.run import Capture
from alignez_bake.capture.weights import disagreement_weights
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.capture.sequences import TokenisedPair
    from alignez_bake.capture.spec import AnswerSide, Tokens
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress

    Float64Array = NDArray[np.float64]
    Divergences = Sequence[Float64Array]

# What the ridges record: `Ridge.spec`, `ResidualRidge.spec`.
_ANSWER: Final[AnswerSide] = "good"
_TOKENS: Final[Tokens] = "shared"
_SMALLEST_DIVERGENCE: Final = 1e-6
"""In nats; where no objective disagrees by more, the token is nobody's, and the shares are 1."""


def shares(divergences: Mapping[str, Divergences]) -> dict[str, list[Float64Array]]:
    """s_o of every token.

    Args:
        divergences: by objective, two or more, JSD in nats of the same tokens: one float64 array a pair.

    Returns:
        Arrays of the same shapes, within [0, 1]; at each token that of at least one objective is 1.
    """
    found = {}
    for name, own in divergences.items():
        others = [each for other, each in divergences.items() if other != name]
        most = [np.max(each, axis=0) for each in zip(*others, strict=True)]
        found[name] = [
            np.minimum(1.0, np.maximum(ours, _SMALLEST_DIVERGENCE) / np.maximum(theirs, _SMALLEST_DIVERGENCE)) ** 2
            for ours, theirs in zip(own, most, strict=True)
        ]
    return found


def joint_captures(
    lm: LanguageModel,
    pairs: Mapping[str, Sequence[TokenisedPair]],
    *,
    batch_size: int,
    progress: Progress,
    left_alone: Sequence[Sequence[int]] = (),
) -> dict[str, Capture]:
    """Captures of all objectives over the same tokens, whose weights are w_o(t) s_o(t).

    With m objectives of n pairs each this reads m² n pairs, where separate fits read m n.

    Args:
        lm: the base.
        pairs: by objective the pairs of *all* objectives, in one order, in that objective's contexts.
        batch_size: sequences that run together.
        progress: counts sequences.
        left_alone: token ids of texts that edits should leave alone.

    Raises:
        BadInputError: a prompt that has other tokens under other objectives' personas, or an objective whose personas
            agree at every token.
    """
    captures = {name: Capture(lm, found, batch_size=batch_size, progress=progress) for name, found in pairs.items()}
    divergences = {name: capture.divergences(_ANSWER, _TOKENS) for name, capture in captures.items()}
    _check_same_tokens(divergences)
    whose = shares(divergences)
    return {
        name: Capture(
            lm,
            found,
            batch_size=batch_size,
            progress=progress,
            weights={
                (_ANSWER, _TOKENS): [
                    weight * share
                    for weight, share in zip(disagreement_weights(divergences[name]), whose[name], strict=True)
                ]
            },
            left_alone=left_alone,
        )
        for name, found in pairs.items()
    }


def _check_same_tokens(divergences: Mapping[str, Divergences]) -> None:
    counts = {name: [len(tokens) for tokens in found] for name, found in divergences.items()}
    first, *others = counts.items()
    for name, found in others:
        if found != first[1]:
            raise BadInputError(
                f"prompts have other tokens behind the personas of {name!r} than behind those of {first[0]!r}, so the "
                "two cannot be fitted jointly: use another prompt form, or leave --joint out"
            )
