"""How edits are to be found, checked against a base before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.edit import POSITIONS, Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.home import constant_has_home
from alignez_bake.lowering.slot import find_slot
from alignez_bake.methods.layers import parse_layers, parse_top_layers
from alignez_bake.methods.protocol import MethodSettings, ReadsOut
from alignez_bake.methods.registry import check_joint, check_offered, method_named

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.asked_fit import AskedFit
    from alignez_bake.edit import Positions
    from alignez_bake.methods.protocol import Method, TopLayers
    from alignez_bake.model_folder import ModelFolder


@dataclass(frozen=True)
class FitSettings:
    """How edits are found, checked against a base before anything runs.

    Attributes:
        method: the method.
        layers: to edit.
        strength: the method's own; its default unless given.
        rank: of each edit; the method's default unless given.
        seed: for methods that draw.
        positions: which rows of each forward call the edits change: `all`, or the `last` alone, as AlignEZ does.
        gated: the method's own non-linear operators instead of their linear form.
        top_layers: how many of the layers to edit, those that score best; `auto`: as many as the method's own rule
            takes; all unless given.
        joint: whether several objectives are fitted over the tokens of all (`methods.joint`).
        untie: whether a head that is tied to the embedding is changed as well.
        penalty: λ of the method's ridge; the method's default unless given.
        neutral: a file of texts to leave alone, for methods that do; None: none.
    """

    method: Method
    layers: tuple[int, ...]
    strength: float | None
    rank: int | None
    seed: int
    positions: Positions = "all"
    gated: bool = False
    top_layers: TopLayers | None = None
    joint: bool = False
    untie: bool = False
    penalty: float | None = None
    neutral: Path | None = None

    @property
    def fewest_neutral(self) -> int:
        """How many texts `neutral` must hold: the fit sees every second one, and the others measure."""
        return 2

    def for_objective(self, name: str | None) -> MethodSettings:
        """What the method is told; positions are none of its business."""
        return MethodSettings(
            strength=self.strength,
            rank=self.rank,
            penalty=self.penalty,
            seed=self.seed,
            objective=name,
            gated=self.gated,
            top_layers=self.top_layers,
            untie=self.untie,
        )

    def as_json(self) -> dict[str, Any]:
        """The settings that reproduce a fit; of the last six those alone that were asked for."""
        asked: dict[str, Any] = {}
        if self.positions != "all":
            asked["positions"] = self.positions
        if self.gated:
            asked["gated"] = True
        if self.top_layers is not None:
            asked["top_layers"] = self.top_layers
        if self.joint:
            asked["joint"] = True
        if self.untie:
            asked["untie"] = True
        if self.penalty is not None:
            asked["penalty"] = self.penalty
        return {
            "strength": self.method.default_strength if self.strength is None else self.strength,
            "rank": self.rank,
            "layers": list(self.layers),
            **asked,
        }


def check_fit(base: ModelFolder, asked: AskedFit) -> FitSettings:
    """Settings of a fit, refused before the long work where they cannot lead to edits.

    Args:
        base: the base model.
        asked: with a method's name, and a number as strength or none; what belongs to a choice does not matter.

    Raises:
        BadInputError: unknown method or positions, layers out of range, a rank that a site does not have, more top
            layers than layers or neither a number of them nor `auto`, settings that the method or the base has no use
            for, or a site that the architecture lacks.
    """
    assert not isinstance(asked.strength, str)
    chosen, selected = method_named(asked.method), asked_layers(base, asked)
    top = parse_top_layers(asked.top_layers)
    settings = FitSettings(
        chosen,
        selected,
        asked.strength,
        asked.rank,
        asked.seed,
        checked_positions(asked.positions),
        gated=asked.gated,
        top_layers=top,
        joint=asked.joint,
        untie=asked.untie,
        penalty=asked.penalty,
    )
    check_offered(chosen, settings.for_objective(None))
    if asked.joint:
        check_joint(chosen)
    check_untie(base, asked)
    if isinstance(top, int) and top > len(selected):
        raise BadInputError(f"top layers {top} is not possible: only {len(selected)} layers may be edited")
    last = base.num_layers - 1
    if isinstance(chosen, ReadsOut) and chosen.needs_last_layer and last not in selected:
        raise BadInputError(
            f"method {chosen.name!r} changes what is read out behind layer {last}, the model's last one, and --layers "
            f"{asked.layers} leaves it out: let them end there, or use residual_ridge"
        )
    for site in chosen.sites(base.architecture, selected):
        slot = find_slot(base, site)
        widest = min(slot.d_out, slot.d_in)
        if asked.rank is not None and asked.rank > widest:
            raise BadInputError(
                f"rank {asked.rank} is above what site {site} has: its map is {slot.d_out} x {slot.d_in}"
            )
    return settings


def check_untie(base: ModelFolder, asked: AskedFit) -> None:
    """Refuse to untie what is not tied.

    Raises:
        BadInputError: the base's head is a tensor of its own.
    """
    if asked.untie and not base.architecture.is_tied(base.config):
        raise BadInputError(f"--untie: the head of {base.path} is a tensor of its own already: leave it out")


def asked_layers(base: ModelFolder, asked: AskedFit) -> tuple[int, ...]:
    """The layers that may be edited.

    Raises:
        BadInputError: layers that the base does not have.
    """
    return tuple(range(base.num_layers)) if asked.layers is None else parse_layers(asked.layers, base.num_layers)


def checked_positions(text: str) -> Positions:
    """The positions of that name.

    Raises:
        BadInputError: there are none.
    """
    for known in POSITIONS:
        if text == known:
            return known
    raise BadInputError(f"positions {text!r} is unknown: use one of {', '.join(POSITIONS)}")


def check_ways(settings: FitSettings, base: ModelFolder, *, code: bool) -> None:
    """Refuse, before the long work, settings whose edits will find no way into a checkpoint.

    What is refused here can still be fitted: an edit file holds whatever the record allows.

    Args:
        settings: of the fit.
        base: the base model.
        code: whether the result may bring a code file, whose modules carry every edit.

    Raises:
        BadInputError: edits that need an inserted module where no code is allowed: gated, of the last position, or
            a constant that the base has no bias for. The message names the way out.
    """
    if code:
        return
    allow = "allow it with --trust-remote-code, which writes a checkpoint with a small code file of its own"
    name = settings.method.name
    if settings.gated:
        raise BadInputError(
            f"--gated: the gates of method {name!r} cannot be folded into weights and need an inserted module: "
            f"{allow}, or leave --gated out for the linear form"
        )
    if settings.positions != "all":
        raise BadInputError(
            f"--positions {settings.positions}: weights edit every position, so this needs an inserted module: "
            f"{allow}, or use --positions all"
        )
    if not settings.method.needs_bias:
        return
    sites = settings.method.sites(base.architecture, settings.layers)
    if homeless := [str(site) for site in sites if not constant_has_home(base, site)]:
        raise BadInputError(
            f"method {name!r} adds a constant, which needs a bias, and {base.path} has none at "
            f"{', '.join(homeless)}: {allow}, or use a method without constants, such as ridge"
        )


def probe_plan(settings: FitSettings, base: ModelFolder) -> EditPlan:
    """Edits of the kind that a fit will give, with values that mean nothing: to see whether they find a way.

    Empty where they are linear maps without a constant, which every artefact carries.
    """
    if not (settings.gated or settings.positions != "all" or settings.method.needs_bias):
        return EditPlan(())
    edits = []
    for site in settings.method.sites(base.architecture, settings.layers):
        width = find_slot(base, site).d_out
        ones = np.ones((width, 1), np.float32)
        edits.append(
            Edit(
                site,
                left=ones,
                right=ones,
                bias=ones[:, 0] if settings.method.needs_bias else None,
                gate="tanh" if settings.gated else "identity",
                positions=settings.positions,
            )
        )
    return EditPlan(tuple(edits))
