"""Will alignment help? One of three answers, the gain to expect, and what to do about it.

The gain to expect is that of contrastive decoding, the default, as `feasibility.obedience` derives it from how often
the base follows either persona. Methods that imitate the wanted persona alone can be expected to gain the room, what it
reaches when it is asked. Both are self-judged, shares of answers.

    likely      every one of these that was measured is shown at 95 %: the base's answers under its personas are told
                apart (contrast above 0); there is something to gain (above 0); the pairs' good answers are likelier
                under the good persona than their bad ones (more than half of the pairs, and contrast above 0); some
                layer tells held-out pairs apart
    unlikely    one of these is shown at 95 %: the gain is below `WORTH`; the contrast, or that of pairs that the base
                wrote itself, is below what a gain of `WORTH` takes; or more than half of the pairs have their sides the
                wrong way round
    unclear     anything else: the figures allow both

The pairs matter because a base judges its own answers well under the very sentences that they were sampled under: a
model of random weights has another distribution after any other text, so its contrast is near 1, its room is a number
like any other, and neither has to do with what the words mean. Answers of pairs were each sampled under a
characteristic of its own. What carries over from there to the sentences that judge, and from some queries to others, is
the persona.

`WORTH` is the smallest gain that somebody would see who compares the two models on a hundred answers each, the number
that this tool recommends: with 80 % power at 5 %, (1.96 + 0.84) · sqrt(2 · ¼ / 100) = 0.2. It was not chosen by what
the predictions come to. What would not be seen is not worth an edit; that something above it exists must be shown.
A gain of it takes a contrast of 0.17, where the personas lie as far to either side of a base that stands midway:
logit(½ + 0.2) = (3 s - 2) logit(½ + contrast / 2).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from alignez_bake.feasibility.layers import BestLayer, best_layer
from alignez_bake.feasibility.obedience import SHARPENING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.feasibility.layers import LayerReport
    from alignez_bake.feasibility.obedience import Obedience
    from alignez_bake.feasibility.pair_quality import PairQuality
    from alignez_bake.prompts.objective import Side
    from alignez_bake.tuning.uncertainty import ClusteredMean

Verdict = Literal["likely", "unclear", "unlikely"]

WORTH: Final = 0.2
CONTRAST_WORTH: Final = 2.0 / (1.0 + ((0.5 - WORTH) / (0.5 + WORTH)) ** (1.0 / (3.0 * SHARPENING - 2.0))) - 1.0
_ENOUGH_QUERIES: Final = 100
_LARGE_SHARE: Final = 0.5


@dataclass(frozen=True)
class Prediction:
    """What is to be expected.

    Attributes:
        verdict: as the module says.
        gain: expected change of the share of good answers, self-judged, with standard error and 95 % interval.
        reasons: sentences with the figures that led to the verdict.
        advice: sentences that say what would change it; empty where nothing needs to.
    """

    verdict: Verdict
    gain: ClusteredMean
    reasons: tuple[str, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        return {
            "verdict": self.verdict,
            "gain": asdict(self.gain),
            "reasons": list(self.reasons),
            "advice": list(self.advice),
        }

    @property
    def sentence(self) -> str:
        """Verdict and gain in one sentence, without a full stop."""
        says = {
            "likely": "likely helps; expected gain",
            "unclear": "unclear; expected gain",
            "unlikely": "unlikely to help; self-judged gain",
        }
        gain = self.gain
        return (
            f"{says[self.verdict]} {_signed(gain.value)} points of good answers, standard error "
            f"{100 * gain.standard_error:.0f}, 95 % interval {_signed(gain.low)} to {_signed(gain.high)}"
        )


def predict(
    obedience: Obedience, pairs: PairQuality, layers: Sequence[LayerReport], *, wanted: Side = "good"
) -> Prediction:
    """The prediction.

    Args:
        obedience: of the base.
        pairs: what they are worth.
        layers: reports of all layers; empty where none was recorded.
        wanted: the persona that an edit is to make permanent.
    """
    best = best_layer(layers) if layers else None
    shown = (
        obedience.contrast.low > 0
        and obedience.gain.low > 0
        and pairs.told_apart.low > 0.5
        and pairs.contrast.low > 0
        and (best is None or best.shown)
    )
    ruled_out = (
        obedience.contrast.high < CONTRAST_WORTH
        or obedience.gain.high < WORTH
        or (pairs.own and pairs.contrast.high < CONTRAST_WORTH)
        or pairs.told_apart.high < 0.5
    )
    verdict: Verdict = "unlikely" if ruled_out else "likely" if shown else "unclear"
    advice = [*_advice_on_base(obedience, wanted), *_advice_on_pairs(pairs), *_advice_on_layers(best)]
    return Prediction(verdict, obedience.gain, tuple(_reasons(obedience, pairs, best, wanted)), tuple(advice))


def _reasons(obedience: Obedience, pairs: PairQuality, best: BestLayer | None, wanted: Side) -> list[str]:
    other = "bad" if wanted == "good" else "good"
    mine, others, plain = (_share(rate.value) for rate in (obedience.wanted, obedience.other, obedience.plain))
    found = pairs.told_apart
    answers = (
        f"{mine} of the answers under the {wanted} persona are judged to be its own, {others} of those under the "
        f"{other} one, and {plain} of those under none are judged to be the {wanted} persona's; chance is 50 %"
    )
    sides = (
        f"in {_share(found.value)} of {pairs.judged} pairs the good answer is the likelier one under the good persona "
        f"(95 % interval {_share(found.low)} to {_share(found.high)}, chance 50 %)"
    )
    gains = (
        f"what sets the {wanted} persona apart, sharpened as by default, can be expected to gain "
        f"{_signed(obedience.gain.value)} points; the persona imitated, {_signed(obedience.room.value)}"
    )
    reasons = [answers, gains, sides]
    if obedience.reach is not None:
        reasons.append(
            f"the {wanted} persona moves {_share(obedience.reach.value)} of the answers' probability, at most "
            f"{_share(obedience.reach.high)}: imitating it changes no judge's verdict on more"
        )
    if best is not None:
        held_out = best.separability.held_out
        reasons.append(
            f"layer {best.layer} ({best.tokens.replace('_', ' ')}) tells {held_out.successes} of {held_out.total} "
            f"held-out pairs apart; p = {best.p_value:.2g} for all layers at once"
        )
    return reasons


def _advice_on_base(obedience: Obedience, wanted: Side) -> list[str]:
    advice = []
    contrast, gain = obedience.contrast, obedience.gain
    if obedience.written_for == "personas" and (contrast.low <= 0 or contrast.high < CONTRAST_WORTH):
        right = 0.5 + 0.5 * contrast.value
        advice.append(
            f"the base does not follow its personas, as far as {obedience.queries} queries show: {_share(right)} of "
            "the answers under them are judged to be the right one's, chance is 50 %; use a larger or "
            "instruction-tuned base, or a more concrete objective"
        )
    elif gain.high < WORTH and obedience.plain.low > _LARGE_SHARE:
        advice.append(
            f"there is little left to do: without being asked, {_share(obedience.plain.value)} of the answers are "
            f"judged to be the {wanted} persona's already, {_share(obedience.wanted.value)} when it is asked; align to "
            "something that this base does not do yet"
        )
    elif gain.high < WORTH:
        advice.append(
            f"the {wanted} persona changes little: {_share(obedience.wanted.value)} of the answers under it are judged "
            f"to be its own, {_share(obedience.plain.value)} without it; use a more concrete objective, or a larger or "
            "instruction-tuned base"
        )
    if gain.low <= 0 and gain.high >= WORTH:
        more = "give more" if obedience.written_for == "personas" else "`explain --feasibility` asks more"
        advice.append(
            f"answers to {obedience.queries} queries leave the gain within {_signed(gain.low)} to {_signed(gain.high)} "
            f"points: {more}, about {_ENOUGH_QUERIES}"
        )
    return advice


def _advice_on_pairs(pairs: PairQuality) -> list[str]:
    advice = []
    if pairs.told_apart.high < 0.5:
        advice.append(
            f"in {_share(1 - pairs.told_apart.value)} of the pairs the bad answer is the likelier one under the good "
            "persona: the sides look swapped; check them"
        )
    elif pairs.told_apart.low <= 0.5 or pairs.contrast.low <= 0 or (pairs.own and pairs.contrast.high < CONTRAST_WORTH):
        right = _share(0.5 + 0.5 * pairs.contrast.value)
        shows = f"{right} of the answers of {pairs.judged} pairs are judged to be their own persona's, chance is 50 %"
        advice.append(
            f"the base does not follow its personas in words of its own: {shows}; use a larger or instruction-tuned "
            "base, or a more concrete objective"
            if pairs.own
            else f"the pairs do not show the personas: {shows}; let the base write its own, or check their sides"
        )
    shares = pairs.shares
    if shares["kept"] < _LARGE_SHARE:
        advice.append(
            f"{_share(1 - shares['kept'])} of the pairs were dropped ({pairs.filters}): the prompt form may not be the "
            "model's; try --prompt-template"
        )
    poorest = min(pairs.distinct.values())
    if poorest < _LARGE_SHARE:
        side = min(pairs.distinct, key=lambda name: pairs.distinct[name])
        advice.append(
            f"only {_share(poorest)} of the {side} answers are distinct: the base repeats itself; give more varied "
            "queries"
        )
    return advice


def _advice_on_layers(best: BestLayer | None) -> list[str]:
    if best is None or best.shown:
        return []
    found = best.separability.held_out
    sentence = (
        f"no layer tells good and bad answers apart on queries that its probe has not seen: the best one "
        f"({best.layer}) gets {found.successes} of {found.total}, p = {best.p_value:.2g} for all layers at once; give "
        "more queries, or a base that follows its personas"
    )
    return [sentence]


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _signed(value: float) -> str:
    return f"{100 * value:+.0f}"
