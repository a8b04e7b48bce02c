"""How a fit keeps what was found before it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.feasibility.assess import Feasibility
    from alignez_bake.pipeline import Fitted


def with_feasibility(fitted: Fitted, found: Mapping[str, Feasibility]) -> Fitted:
    """The same edits, with `feasibility` in the provenance of their plan: by objective, as JSON values."""
    figures = {name: feasibility.to_json() for name, feasibility in found.items()}
    return replace(fitted, plan=replace(fitted.plan, provenance={**fitted.plan.provenance, "feasibility": figures}))
