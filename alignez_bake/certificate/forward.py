"""Level `forward`: the artefact, reloaded as its users load it, runs as the hooked base does.

What must hold follows from the arithmetic (docs/decisions/certificate.md), not from what was observed:

- weights of 32 or 64 bits: residual stream and logits agree to 1e-5 (norms compute in fp32 whatever the dtype),
  each site's output, given equal input, to 1e-6 (fp64: 1e-12), and all greedy tokens are equal;
- weights of 16 bits: ‖baked - hooked in fp32‖ <= 1.25 · ‖hooked in 16 bits - hooked in fp32‖: a bake loses no more
  than running the hooks in that dtype does. Each site's output agrees to 2⁻⁷; greedy tokens are reported.

All are relative Frobenius norms over all prompts.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from alignez_bake.certificate.forward_passes import (
    LOGIT_POSITIONS,
    Outputs,
    SiteRecord,
    greedy_tokens,
    record_outputs,
    record_sites,
)
from alignez_bake.certificate.prompts import certificate_prompts
from alignez_bake.language_model.loading import has_tokenizer, load_model, tokenizer_of
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.slot import find_slot
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.language_model.loading import LoadedModel
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.site import Site

END_TO_END_TOLERANCE: Final = 1e-5
SITE_TOLERANCE: Final = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-7,
}
# An edit that moves the model by less than this many tolerances would pass by doing nothing.
MARGIN: Final = 100
SIXTEEN_BIT_FACTOR: Final = 1.25
BATCH_SIZES: Final = (1, 8)
GREEDY_TOKENS: Final = 64
# One sequence at a time is slow, and shows what the batch does not: no padding. A few prompts show it.
GREEDY_PROMPTS_ALONE: Final = 8
SITE_PROMPTS: Final = 4


class Comparison(NamedTuple):
    """Relative errors of one batch size, with their bound, beside how far the edit moves the model."""

    batch_size: int
    residual_error: float
    residual_bound: float
    logits_error: float
    logits_bound: float
    residual_moved: float
    logits_moved: float


@dataclass(frozen=True)
class ForwardCertificate:
    """What the comparison of the running models found; see the module for what must hold.

    Attributes:
        verdict: `inconclusive` if the edit moves residual stream or logits by less than 100 tolerances.
        reasons: one line each for what went wrong.
        dtype: of the result's weights.
        prompts: where they come from, how many, and their lengths.
        comparisons: one for each batch size.
        greedy_equal: for each batch size the share of prompts whose greedy tokens are all equal.
        greedy_tokens: number of tokens compared after each prompt.
        last_only_difference: how far AlignEZ's own rule, which edits the last row of each forward call alone, moves
            the logits after each prompt away from the edit at all positions; reported, nothing to be met.
        worst_site: path, error and tolerance of the edited map that differs most; None if no linear map is edited.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    dtype: str
    prompts: dict[str, Any]
    comparisons: tuple[Comparison, ...]
    greedy_equal: dict[int, float]
    greedy_tokens: int
    last_only_difference: float
    worst_site: tuple[str, float, float] | None
    level: Level = field(default="forward", init=False)

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        return {
            "level": self.level,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "dtype": self.dtype,
            "prompts": self.prompts,
            "comparisons": [entry._asdict() for entry in self.comparisons],
            "greedy": {
                "tokens": self.greedy_tokens,
                "equal_share": {f"batch {size}": share for size, share in self.greedy_equal.items()},
            },
            "last_only_difference": self.last_only_difference,
            "worst_site": None
            if self.worst_site is None
            else dict(zip(("module", "error", "tolerance"), self.worst_site, strict=True)),
        }


class _Reference(NamedTuple):
    """What the hooked base gave: in the result's dtype, and in the dtype that errors are measured against."""

    hooked: dict[int, Outputs]
    exact: dict[int, Outputs]
    unedited: dict[int, Outputs]
    greedy: dict[int, list[list[int]]]
    sites: dict[str, list[SiteRecord]]
    last_only_difference: float


class _Found(NamedTuple):
    """What the baked model gave."""

    outputs: dict[int, Outputs]
    greedy: dict[int, list[list[int]]]
    worst_site: tuple[str, float, float] | None
    same_keys_used: bool


def certify_forward(
    base: ModelFolder,
    lowering: Lowering,
    result: LoadedModel,
    *,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ForwardCertificate:
    """Run the result against the hooked base on 32 prompts, alone and in left-padded batches of 8.

    Args:
        base: the base model.
        lowering: the edits that were baked, and how.
        result: the artefact, loaded from disk as its users load it.
        device: where both run.
        trust_remote_code: passed to transformers' loader.
        progress: counts prompts.

    Raises:
        BadInputError: a folder that does not load, or a site that the architecture lacks.
    """
    baked, unused = result
    plan = lowering.plan
    dtype = baked.dtype
    sixteen_bit = dtype in (torch.bfloat16, torch.float16)
    positions = int(getattr(baked.config, "max_position_embeddings", None) or 10**9)
    new_tokens = min(GREEDY_TOKENS, max(1, positions // 2))
    vocabulary = int(baked.get_input_embeddings().num_embeddings)
    tokenizer = tokenizer_of(base.path, trust_remote_code=trust_remote_code) if has_tokenizer(base.path) else None
    prompts = certificate_prompts(tokenizer, vocabulary_size=vocabulary, longest=positions - new_tokens)
    alone = prompts.ids[:: max(1, len(prompts.ids) // GREEDY_PROMPTS_ALONE)]
    paths = _comparable_maps(base, lowering)

    runs = len(BATCH_SIZES) * (5 if sixteen_bit else 3) + 2
    total = runs * len(prompts.ids) + 2 * (len(prompts.ids) + len(alone))
    with (progress or NoProgress()).task("running baked and hooked model", total) as advance:

        def outputs(model: PreTrainedModel) -> dict[int, Outputs]:
            return {size: record_outputs(model, base.architecture, prompts.ids, size, advance) for size in BATCH_SIZES}

        def last_logits(model: PreTrainedModel) -> torch.Tensor:
            size = BATCH_SIZES[-1]
            return record_outputs(model, base.architecture, prompts.ids, size, advance, logit_positions=1).logits

        def greedy(model: PreTrainedModel) -> dict[int, list[list[int]]]:
            small, large = BATCH_SIZES
            return {
                small: greedy_tokens(model, alone, small, new_tokens, advance),
                large: greedy_tokens(model, prompts.ids, large, new_tokens, advance),
            }

        found, found_greedy = outputs(baked), greedy(baked)
        reference_model, unused_by_base = load_model(
            base, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        with edited_by_hooks(reference_model, base.architecture, plan):
            sites = record_sites(reference_model, paths, alone[:SITE_PROMPTS])
            hooked, hooked_greedy = outputs(reference_model), greedy(reference_model)
            after_prompts = last_logits(reference_model)
        with edited_by_hooks(reference_model, base.architecture, plan, positions="last"):
            last_only_difference = relative_error(last_logits(reference_model), after_prompts)
        if sixteen_bit:
            in_fp32 = load_model(base, dtype=torch.float32, device=device, trust_remote_code=trust_remote_code)
            reference_model = in_fp32.model
            with edited_by_hooks(reference_model, base.architecture, plan):
                exact = outputs(reference_model)
        else:
            exact = hooked
        unedited = outputs(reference_model)
    reference = _Reference(hooked, exact, unedited, hooked_greedy, sites, last_only_difference)
    lengths = [len(ids) for ids in prompts.ids]
    return _judge(
        _Found(found, found_greedy, _worst_site(baked, reference.sites), unused == unused_by_base),
        reference,
        dtype,
        prompts={
            "count": len(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
            "source": prompts.source,
            "logits_at_last_positions": LOGIT_POSITIONS,
        },
        new_tokens=new_tokens,
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖, Frobenius, in fp64; the largest float stands for an infinite or undefined one.

    Certificates are JSON, which has no infinity.
    """
    expected64 = expected.double()
    error = float((found.double() - expected64).norm() / expected64.norm())
    return error if math.isfinite(error) else sys.float_info.max


def _judge(
    found: _Found, reference: _Reference, dtype: torch.dtype, *, prompts: dict[str, Any], new_tokens: int
) -> ForwardCertificate:
    worst_site = found.worst_site
    sixteen_bit = dtype in (torch.bfloat16, torch.float16)
    reasons: list[str] = []
    if not found.same_keys_used:
        reasons.append("the loader does not use the same tensors of the result as of the base")
    comparisons = []
    moved_too_little = False
    for size in BATCH_SIZES:
        exact, hooked, unedited = reference.exact[size], reference.hooked[size], reference.unedited[size]
        errors, bounds, moved = [], [], []
        for name in Outputs._fields:
            true = getattr(exact, name)
            noise = relative_error(getattr(hooked, name), true) if sixteen_bit else 0.0
            errors.append(relative_error(getattr(found.outputs[size], name), true))
            bounds.append(min(SIXTEEN_BIT_FACTOR * noise, sys.float_info.max) if sixteen_bit else END_TO_END_TOLERANCE)
            moved.append(relative_error(getattr(unedited, name), true))
            if not errors[-1] <= bounds[-1]:
                reasons.append(
                    f"batch {size}: {name} differ from the hooked base by {errors[-1]:.2e}, bound {bounds[-1]:.2e}"
                )
            # In 16 bits the dtype's own noise must not hide the edit either.
            if not moved[-1] >= max(MARGIN * END_TO_END_TOLERANCE, noise):
                moved_too_little = True
        comparisons.append(Comparison(size, errors[0], bounds[0], errors[1], bounds[1], moved[0], moved[1]))
    greedy_equal = {
        size: sum(a == b for a, b in zip(found.greedy[size], reference.greedy[size], strict=True))
        / len(found.greedy[size])
        for size in BATCH_SIZES
    }
    if not sixteen_bit:
        reasons.extend(
            f"batch {size}: greedy tokens differ from the hooked base's on {1 - share:.0%} of the prompts"
            for size, share in greedy_equal.items()
            if share < 1
        )
    if worst_site is not None and not worst_site[1] <= worst_site[2]:
        reasons.append(
            f"{worst_site[0]}: given equal input, its output differs from the hook's by {worst_site[1]:.2e}, "
            f"bound {worst_site[2]:.2e}"
        )
    verdict: Verdict = "failed" if reasons else "passed"
    if not reasons and moved_too_little:
        verdict = "inconclusive"
        least = min(min(entry.residual_moved, entry.logits_moved) for entry in comparisons)
        reasons.append(
            f"the edit moves the model by {least:.2e} only, less than {MARGIN} tolerances"
            f"{' or the noise of ' + str(dtype).removeprefix('torch.') if sixteen_bit else ''}, so agreement "
            "shows nothing; use a larger strength"
        )
    return ForwardCertificate(
        verdict,
        tuple(reasons),
        str(dtype).removeprefix("torch."),
        prompts,
        tuple(comparisons),
        greedy_equal,
        new_tokens,
        reference.last_only_difference,
        worst_site,
    )


def _comparable_maps(base: ModelFolder, lowering: Lowering) -> list[str]:
    """Paths of the edited modules that, given the hooked one's input, must give its output.

    Not where hidden units were added, whose values would have to be in that input, nor where the edit reads more than
    that, nor where the site got edits of the residual stream as well. The comparison of the whole model sees those.
    """
    architecture, plan = base.architecture, lowering.plan
    reads_block = {edit.site for edit in plan.edits if edit.reads == "block"}
    # Modules that get a batch flattened cannot tell its last rows by themselves.
    last = {edit.site for edit in plan.edits if edit.positions == "last"} if architecture.flattens else set()

    # Residual edits that became the writers'.
    joined = {
        fold.slot.site
        for fold in lowering.folds
        if sum(len(group.edits) for group in fold.groups) > sum(edit.site == fold.slot.site for edit in plan.edits)
    }

    def keeps_its_shape(site: Site) -> bool:
        before, after = find_slot(base, site), find_slot(lowering.home, site)
        return (before.d_out, before.d_in) == (after.d_out, after.d_in)

    return [
        architecture.module_path(site)
        for site in plan.sites
        if site.kind in architecture.sites and site not in reads_block | last | joined and keeps_its_shape(site)
    ]


@torch.no_grad()
def _worst_site(baked: PreTrainedModel, sites: dict[str, list[SiteRecord]]) -> tuple[str, float, float] | None:
    tolerance = SITE_TOLERANCE[baked.dtype]
    errors = {
        path: relative_error(
            torch.cat([baked.get_submodule(path)(record.input).flatten() for record in records]),
            torch.cat([record.output.flatten() for record in records]),
        )
        for path, records in sites.items()
    }
    if not errors:
        return None
    path = max(errors, key=lambda name: errors[name])
    return path, errors[path], tolerance
