"""The edits that a command is asked to take, and whether they belong to its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.edit_file import read_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.hub.download import edits_file, edits_file_at_point

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignez_bake.model_folder import ModelFolder


def plan_of(edits: str | Path | EditPlan, weights: Mapping[str, float] | None, point: str | None = None) -> EditPlan:
    """The edits that are asked for: a plan, or what lies at a path or on the hub, with the dials of its objectives.

    Raises:
        BadInputError: no such edits, damaged ones, a dial of an objective that there is not, or a point of no search.
    """
    if isinstance(edits, EditPlan):
        if point is not None:
            raise BadInputError(
                f"point {point!r} is found beside a file of edits, and these are in memory: give a path"
            )
        plan = edits
    else:
        plan = read_edits(edits_file(edits) if point is None else edits_file_at_point(edits, point))
    return plan.with_weights(weights) if weights else plan


def check_base(plan: EditPlan, base: ModelFolder, *, allow_other_base: bool) -> None:
    """Refuse edits made for another base, unless that is asked for.

    Raises:
        BadInputError: the plan names a base, and it is not this one.
    """
    if plan.base is None or allow_other_base or plan.base == base.fingerprint:
        return
    if plan.base.model_type != base.fingerprint.model_type:
        difference = f"a {plan.base.model_type}, not a {base.fingerprint.model_type}"
    elif plan.base.config_sha256 != base.fingerprint.config_sha256:
        difference = "one with another config.json"
    else:
        difference = "one with other weights"
    raise BadInputError(
        f"the edits were made for another base than {base.path} ({difference}): use their own base, or "
        "--allow-other-base if sites and shapes are meant to fit"
    )
