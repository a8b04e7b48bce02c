"""Folding into the base's own tensors, and comparing what was folded with the hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.lower import lower
from alignez_bake.progress import NoProgress
from tests.running import load, relative, run

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.lowering.decide import Lowering, Route
    from alignez_bake.model_folder import ModelFolder

FP32_END, MARGIN = 1e-5, 100


class FoldsAndInserts(CheckpointExporter):
    """A checkpoint that has the base's own tensors alone: none of an equivalent model with more room."""

    routes: frozenset[Route] = frozenset({"fold", "insert"})


def routes(plan: EditPlan, base: ModelFolder, *, code: bool = False) -> list[str]:
    """The route of each edit."""
    return [decision.route for decision in lower(plan, base, FoldsAndInserts(), code=code).decisions]


def refusal(plan: EditPlan, base: ModelFolder) -> str:
    """The reasons for which edits are refused where no code file may be written, one line each."""
    return "\n".join(decision.reason for decision in lower(plan, base, FoldsAndInserts()).refused)


def fold_into(base: ModelFolder, plan: EditPlan, out: Path) -> Lowering:
    """Bake a plan, every edit of which folds."""
    lowering = lower(plan, base, FoldsAndInserts())
    assert {decision.route for decision in lowering.decisions} == {"fold"}, lowering.refused
    out.mkdir()
    FoldsAndInserts().export(base, lowering, out, ExportSettings(), NoProgress())
    return lowering


def errors(base: ModelFolder, plan: EditPlan, out: Path) -> tuple[float, float]:
    """How far logits and residual stream of a result lie from the hooked base, relative, in fp32.

    The edit itself must move both by 100 tolerances, so that agreement shows something.
    """
    original, baked = load(base.path, torch.float32), load(out, torch.float32)
    before = run(original, base.architecture, [])[:2]
    with edited_by_hooks(original, base.architecture, plan):
        hooked = run(original, base.architecture, [])[:2]
    after = run(baked, base.architecture, [])[:2]
    assert min(relative(x, y) for x, y in zip(before, hooked, strict=True)) > MARGIN * FP32_END
    logits, residual = (relative(x, y) for x, y in zip(after, hooked, strict=True))
    return logits, residual


def assert_folds(base: ModelFolder, plan: EditPlan, out: Path) -> Lowering:
    """Fold a plan; the result must be the hooked base."""
    lowering = fold_into(base, plan, out)
    assert max(errors(base, plan, out)) <= FP32_END
    return lowering
