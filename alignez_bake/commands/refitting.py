"""Edits made to fold before they are baked: `--linearise` and `--refit-block`, with what is kept of them.

This is the one part of a bake that runs the base, to record what the edits read.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.drift import kl_on_texts
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.lowering.home import constant_has_home
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import neutral_texts
from alignez_bake.refit.block import refit_block
from alignez_bake.refit.calibration import refit_sequences
from alignez_bake.refit.linearise import linearise

if TYPE_CHECKING:
    from typing import Literal

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.lowering.decide import Target
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.refit.report import RefitReport

    RefitKind = Literal["linearised", "block"]


@dataclass(frozen=True)
class Refitted:
    """A plan whose edits were changed so that they fold, beside what that costs.

    Attributes:
        plan: the new edits.
        kind: `linearised`: best affine maps of gated edits; `block`: gated edits that read what enters the MLP.
        reports: one for each changed edit: how much of its effect is kept.
        kl_kept: mean KL of the next-token distributions, nats a token on the neutral texts, of the model with the
            original edits from that with the new ones; both by hooks.
        kl_edit: the same of the base from the model with the original edits: what there was to keep.
    """

    plan: EditPlan
    kind: RefitKind
    reports: tuple[RefitReport, ...]
    kl_kept: float
    kl_edit: float

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line for each edit of which the refit keeps nothing: no edit at all would be as close to it."""
        return tuple(
            f"the refit keeps nothing of the edit at {report.site}: explained variance {share:.3g} on held-out tokens"
            for report in self.reports
            if (share := report.explained_variance) is not None and share <= 0
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "kind": self.kind,
            "reasons": list(self.reasons),
            "kl_original_to_refitted": self.kl_kept,
            "kl_original_to_base": self.kl_edit,
            "edits": [report.to_json() for report in self.reports],
        }


def expected_plan(base: ModelFolder, plan: EditPlan, kind: RefitKind, target: Target) -> EditPlan:
    """A plan of the form that a refit will give, with values that mean nothing: to see whether it finds a way.

    Args:
        base: the base.
        plan: the original edits.
        kind: how they are to be made to fold.
        target: the artefact that they are to go into.

    Raises:
        BadInputError: an edit of the last position, which neither weights nor hidden units can tell from others.
    """
    if last := [str(edit.site) for edit in plan.edits if edit.positions == "last"]:
        raise BadInputError(
            f"the edit at {last[0]} acts at the last position alone, and what a refit gives acts at all: bake it as an "
            "inserted module"
        )

    def linear(edit: Edit) -> Edit:
        if edit.gate == "identity":
            return edit
        at_home = constant_has_home(base, edit.site, rehoming="rehome" in target.routes)
        ones = np.ones(edit.rank, np.float32) if at_home else None
        return replace(edit, gate="identity", offset=ones, bias=edit.bias if at_home else None)

    def of_the_block(edit: Edit) -> Edit:
        if edit.site.kind != "mlp_write" or edit.right is None or edit.positions != "all":
            return edit
        # What enters the MLP is as wide as what it writes.
        return replace(edit, reads="block", right=np.ones((edit.d_out, edit.rank), np.float32))

    change = linear if kind == "linearised" else of_the_block
    return replace(plan, edits=tuple(change(edit) for edit in plan.edits))


def refitted(
    base: ModelFolder,
    plan: EditPlan,
    kind: RefitKind,
    target: Target,
    *,
    device: str,
    trust_remote_code: bool,
    batch_size: int,
    progress: Progress,
) -> Refitted:
    """Refit a plan on the texts that the project ships, and measure what is kept.

    Args:
        base: the base.
        plan: the original edits.
        kind: how to make them fold.
        target: the artefact that they go into, which may have no room for the constants that a best fit has.
        device: where the base runs.
        trust_remote_code: passed to transformers' loader.
        batch_size: texts that run together.
        progress: counts sequences.

    Raises:
        BadInputError: no edit that the refit applies to, or one that it cannot change; a base that does not load, or
            has positions for none of the texts.
    """
    if kind == "linearised" and all(edit.gate == "identity" for edit in plan.edits):
        raise BadInputError("--linearise: no edit has a gate, so there is nothing to linearise: leave it out")
    lm = load_language_model(base, device=device, trust_remote_code=trust_remote_code)
    form = prompt_form(lm.tokenizer)
    sequences, texts = refit_sequences(lm, form), _neutral_texts_that_fit(lm, form)
    if kind == "linearised":
        found = linearise(
            lm,
            plan,
            sequences,
            batch_size=batch_size,
            progress=progress,
            allow_constant=lambda site: constant_has_home(base, site, rehoming="rehome" in target.routes),
        )
    else:
        found = refit_block(lm, plan, sequences, batch_size=batch_size, progress=progress)

    def divergence(after: EditPlan | None) -> float:
        """KL of the model with the original edits from the one with others, or with none."""
        return kl_on_texts(
            lm,
            lm,
            texts,
            form,
            batch_size=batch_size,
            editing_base=lambda: edited_by_hooks(lm.model, lm.architecture, plan),
            editing=nullcontext if after is None else lambda: edited_by_hooks(lm.model, lm.architecture, after),
        )

    return Refitted(found.plan, kind, found.reports, divergence(found.plan), divergence(None))


def _neutral_texts_that_fit(lm: LanguageModel, form: PromptForm) -> list[str]:
    """The shipped neutral texts that the model has positions for: they are no text of the user's to be shortened."""
    positions = getattr(lm.model.config, "max_position_embeddings", None)
    texts = neutral_texts()
    fitting = [text for text in texts if positions is None or len(form.text_ids(text)) <= positions]
    if not fitting:
        raise BadInputError(
            f"{lm.folder.path} has {positions} positions, which none of the {len(texts)} texts fits that refits are "
            "measured on: bake the edits as they are, as inserted modules"
        )
    return fitting
