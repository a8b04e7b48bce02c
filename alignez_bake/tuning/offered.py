"""What is chosen among unless a method is named, checked against a base before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from alignez_bake.asked_fit import AUTO
from alignez_bake.errors import BadInputError
from alignez_bake.fit_settings import FitSettings, asked_layers, check_fit, check_untie
from alignez_bake.methods.protocol import LeavesAlone, ReadsOut
from alignez_bake.methods.registry import METHODS, method_named
from alignez_bake.tuning.candidate import Candidate
from alignez_bake.tuning.finer import FinerRungs, candidate_name
from alignez_bake.tuning.neutral import check_neutral_file

if TYPE_CHECKING:
    from alignez_bake.asked_fit import AskedFit
    from alignez_bake.model_folder import ModelFolder


class Rung(NamedTuple):
    """A method with its strengths: those that are tried first, and those beside them if it is the best."""

    method: str
    first: tuple[float, ...]
    finer: tuple[float, ...] = ()


LADDER: Final = (Rung("contrastive_decoding", (1.5,), (2.5,)), Rung("ridge", (2.0,), (1.0, 3.0)))
"""Methods and strengths of `--method auto`. The first was best in every world tried, at every strength; the second also
fits where it does not: mixtures of experts, norms behind the writers, factors on them, soft caps on the logits."""

JOINT_LADDER: Final = (Rung("residual_ridge", (1.0,), (1.25, 1.5)), Rung("ridge", (2.0,), (1.0, 3.0)))
"""The same of several objectives that are fitted jointly."""

STRENGTHS: Final[dict[str, tuple[float, ...]]] = {
    "contrastive_decoding": (1.0, 1.5, 2.0, 3.0, 4.0),
    "residual_ridge": (0.75, 1.0, 1.125, 1.25, 1.5),
    "ridge": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
}
"""Of `--strength auto` with a method's name."""
_OF_DEFAULT: Final = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Of any other method, times its own default."""


@dataclass(frozen=True)
class TuneSettings:
    """A choice of edits, checked against a base before anything runs.

    Attributes:
        candidates: what is tried first, with those that this base does not allow: the search says why.
        fits: settings of those that it does allow.
        kl_budget: most drift on neutral texts, in nats per token; None: the tuner's own.
        neutral: file of neutral texts; None: those that the project ships.
        seed: of everything that is drawn.
        joint: whether several objectives are fitted together.
        finer: what is tried beside the best of the candidates.
    """

    candidates: tuple[Candidate, ...]
    fits: tuple[FitSettings, ...]
    kl_budget: float | None
    neutral: Path | None
    seed: int
    joint: bool = False
    finer: FinerRungs = field(default_factory=FinerRungs)

    @property
    def fewest_neutral(self) -> int:
        """How many texts `neutral` must hold: a single one measures, and no fit sees it."""
        return 1

    @property
    def kinds(self) -> tuple[FitSettings, ...]:
        """One of each method, as strengths differ in values alone."""
        return tuple({fit.method.name: fit for fit in self.fits}.values())

    def as_json(self) -> dict[str, Any]:
        """What a dry run tells."""
        return {
            "name": AUTO,
            "candidates": [candidate.name for candidate in self.candidates],
            "finer": self.finer.as_json(),
            "kl_budget": self.kl_budget,
            "neutral": None if self.neutral is None else str(self.neutral),
        }


def check_settings(base: ModelFolder, asked: AskedFit) -> FitSettings | TuneSettings:
    """Settings of a fit, or of a choice where method or strength are `auto`.

    Args:
        base: the base model.
        asked: what was asked for.

    Raises:
        BadInputError: as `check_fit`, where no candidate is possible; a strength that belongs to no method; options of
            a choice where nothing is chosen; a budget that is no positive number; no such file of neutral texts.
    """
    kl_budget, neutral = asked.kl_budget, None if asked.neutral is None else Path(asked.neutral)
    if neutral is not None:
        check_neutral_file(neutral)
    if AUTO not in {asked.method, asked.strength}:
        if kl_budget is not None:
            raise BadInputError(
                f"--kl-budget {kl_budget} belongs to the choice of an edit, and --method {asked.method} with a fixed "
                "strength leaves none: use --method auto, or --strength auto"
            )
        fit = replace(check_fit(base, asked), neutral=neutral)
        if neutral is not None and not isinstance(fit.method, LeavesAlone):
            seeing = ", ".join(name for name, known in METHODS.items() if isinstance(known, LeavesAlone))
            raise BadInputError(
                f"--neutral {neutral}: a fit of method {asked.method!r} sees no texts but the pairs, and with a fixed "
                f"strength nothing is chosen by them: use it with {seeing}, or --strength auto"
            )
        return fit
    ladder = _ladder(asked)
    check_untie(base, asked)
    if kl_budget is not None and not (math.isfinite(kl_budget) and kl_budget > 0):
        raise BadInputError(
            f"--kl-budget {kl_budget:g} must be a number of nats per token above 0: an edit that moves nothing does "
            "nothing"
        )
    selected = asked_layers(base, asked)
    candidates, fits, refusals = [], [], []
    for name, strengths, _ in ladder:
        for value in strengths:
            try:
                fit = check_fit(base, _asked_of(asked, name, value))
            except BadInputError as error:
                refusals.append(error)
                # Its fit will say the same, for the record of the search.
                fit = FitSettings(method_named(name), selected, value, asked.rank, asked.seed, penalty=asked.penalty)
            else:
                fits.append(fit)
            candidates.append(
                Candidate(candidate_name(name, value), fit.method, fit.for_objective(None), fit.layers, fit.positions)
            )
    if not fits:
        raise refusals[-1]
    finer = FinerRungs(
        {rung.method: (*rung.first, *rung.finer) for rung in ladder if rung.finer},
        rank=asked.rank is None,
        penalty=asked.penalty is None,
        layers=asked.layers is None and asked.top_layers is None,
    )
    return TuneSettings(tuple(candidates), tuple(fits), kl_budget, neutral, asked.seed, asked.joint, finer)


def _asked_of(asked: AskedFit, method: str, strength: float) -> AskedFit:
    """One candidate; of a choice among methods, an untied head is for those that change it."""
    untie = asked.untie and (asked.method != AUTO or isinstance(method_named(method), ReadsOut))
    return replace(asked, method=method, strength=strength, untie=untie)


def _ladder(asked: AskedFit) -> tuple[Rung, ...]:
    """Methods and strengths to choose among.

    Raises:
        BadInputError: an unknown method; or `auto` with what belongs to one.
    """
    if asked.method != AUTO:
        default = method_named(asked.method).default_strength
        strengths = STRENGTHS.get(asked.method, tuple(default * factor for factor in _OF_DEFAULT))
        return (Rung(asked.method, strengths),)
    if asked.strength not in (None, AUTO):
        raise BadInputError(
            f"--strength {asked.strength} means something else for each method: name one with --method, or leave it out"
        )
    for option, given, named in (
        ("--gated", asked.gated, "alignez_v2"),
        ("--top-layers", asked.top_layers is not None, "alignez_v2"),
        ("--penalty", asked.penalty is not None, "contrastive_decoding"),
    ):
        if given:
            raise BadInputError(f"{option} belongs to a method that is named: use it with --method {named}")
    if asked.joint and asked.untie:
        raise BadInputError("--untie is for contrastive_decoding, which --joint does not choose among: leave one out")
    return JOINT_LADDER if asked.joint else LADDER
