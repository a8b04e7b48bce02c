"""Level `forward`: the artefact, reloaded as its users load it, runs as the hooked base does.

What must hold follows from the arithmetic (docs/decisions/certificate.md), not from what was observed:

- weights of 32 or 64 bits: residual stream and logits agree to 1e-5 (norms compute in fp32 whatever the dtype),
  each site's output, given equal input, to 1e-6 (fp64: 1e-12), and all greedy tokens are equal;
- weights of 16 bits: ‖baked - hooked in fp32‖ <= 1.25 · ‖hooked in 16 bits - hooked in fp32‖: a bake loses no more
  than running the hooks in that dtype does. Each site's output agrees to 2⁻⁷; greedy tokens are reported.

All are relative Frobenius norms over all prompts.

In a mixture of experts all runs that are compared take the experts that the hooked base takes, in fp32 if the weights
have 16 bits, and the routers' logits are compared like the other outputs (`certificate/routing.py` says why). Greedy
tokens are generated freely: a prompt whose tokens differ after a choice flipped is left out, and counted.
"""

from __future__ import annotations

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
    relative_error,
)
from alignez_bake.certificate.forward_sites import comparable_maps, worst_site
from alignez_bake.certificate.prompts import fitted_prompts
from alignez_bake.certificate.routing import (
    Generated,
    RoutingComparison,
    RoutingFigures,
    compare_greedy,
    count_flips,
)
from alignez_bake.certificate.routing_figures import routing_rows
from alignez_bake.language_model.loading import load_model
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.language_model.loading import LoadedModel
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

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
        verdict: `inconclusive` if the edit moves residual stream or logits by less than 100 tolerances, or if in fp32
            more than half of the prompts differ in their greedy tokens after a choice of experts flipped.
        reasons: one line each for what went wrong.
        dtype: of the result's weights.
        prompts: where they come from, how many, and their lengths.
        comparisons: one for each batch size.
        greedy_equal: for each batch size the share of prompts whose greedy tokens are all equal.
        greedy_tokens: number of tokens compared after each prompt.
        last_only_difference: how far AlignEZ's own rule, which edits the last row of each forward call alone, moves
            the logits after each prompt away from the edit at all positions; reported, nothing to be met.
        worst_site: path, error and tolerance of the edited map that differs most; None if no linear map is edited.
        routing: of a mixture of experts, how its routers agree; None without experts.
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
    routing: RoutingFigures | None = None
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
            "routing": None if self.routing is None else self.routing.to_json(),
        }

    def main_figures(self) -> list[tuple[str, str]]:
        """Name and value of what people are shown."""
        rows: list[tuple[str, str]] = []
        for entry in self.comparisons:
            rows += [
                (f"{name}, batch {entry.batch_size}", f"error {error:.1e} (bound {bound:.1e}), edit moves {moved:.1e}")
                for name, error, bound, moved in (
                    ("residual", entry.residual_error, entry.residual_bound, entry.residual_moved),
                    ("logits", entry.logits_error, entry.logits_bound, entry.logits_moved),
                )
            ]
        rows += routing_rows(self.routing)
        if self.worst_site is not None:
            path, site_error, tolerance = self.worst_site
            rows.append(("worst site", f"{path}: {site_error:.1e} (bound {tolerance:.1e})"))
        shares = ", ".join(f"batch {size}: {share:.0%}" for size, share in self.greedy_equal.items())
        rows.append((f"{self.greedy_tokens} greedy tokens equal", shares))
        last_only = f"logits after the prompts differ by {self.last_only_difference:.1e}"
        rows.append(("last position only instead", last_only))
        return rows


class _Reference(NamedTuple):
    """What the hooked base gave: in the result's dtype, and in the dtype that errors are measured against."""

    hooked: dict[int, Outputs]
    exact: dict[int, Outputs]
    unedited: dict[int, Outputs]
    greedy: dict[int, Generated]
    sites: dict[str, list[SiteRecord]]
    last_only_difference: float


class _Found(NamedTuple):
    """What the baked model gave."""

    outputs: dict[int, Outputs]
    greedy: dict[int, Generated]
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
    prompts, new_tokens = fitted_prompts(base, baked, trust_remote_code=trust_remote_code)
    alone = prompts.alone
    paths = comparable_maps(base, lowering)

    runs = len(BATCH_SIZES) * (4 if sixteen_bit else 3) + 2
    total = runs * len(prompts.ids) + 2 * (len(prompts.ids) + len(alone))
    with (progress or NoProgress()).task("running baked and hooked model", total) as advance:

        def outputs(model: PreTrainedModel, replay: dict[int, Outputs] | None = None) -> dict[int, Outputs]:
            return {
                size: record_outputs(
                    model,
                    base.architecture,
                    prompts.ids,
                    size,
                    advance,
                    replay=None if replay is None else replay[size].routing,
                )
                for size in BATCH_SIZES
            }

        def last_logits(model: PreTrainedModel) -> torch.Tensor:
            size = BATCH_SIZES[-1]
            return record_outputs(model, base.architecture, prompts.ids, size, advance, logit_positions=1).logits

        def greedy(model: PreTrainedModel) -> dict[int, Generated]:
            small, large = BATCH_SIZES
            return {
                size: greedy_tokens(model, base.architecture, ids, size, advance, new_tokens=new_tokens)
                for size, ids in ((small, alone), (large, prompts.ids))
            }

        def load(in_dtype: torch.dtype) -> LoadedModel:
            return load_model(base, dtype=in_dtype, device=device, trust_remote_code=trust_remote_code)

        def hooked_and_unedited(model: PreTrainedModel) -> tuple[dict[int, Outputs], dict[int, Outputs]]:
            with edited_by_hooks(model, base.architecture, plan):
                hooked = outputs(model)
            # A bake that does nothing would be compared under the reference's choice of experts, like any other.
            return hooked, outputs(model, hooked)

        if sixteen_bit:  # first, since its choice of experts is everyone's; gone before the next one is loaded
            exact, unedited = hooked_and_unedited(load(torch.float32).model)
        reference_model, unused_by_base = load(dtype)
        if not sixteen_bit:
            exact, unedited = hooked_and_unedited(reference_model)
        with edited_by_hooks(reference_model, base.architecture, plan):
            sites = record_sites(reference_model, paths, alone[:SITE_PROMPTS])
            hooked = outputs(reference_model, exact) if sixteen_bit else exact
            hooked_greedy = greedy(reference_model)
            after_prompts = last_logits(reference_model)
        with edited_by_hooks(reference_model, base.architecture, plan, positions="last"):
            last_only_difference = relative_error(last_logits(reference_model), after_prompts)
        found, found_greedy = outputs(baked, exact), greedy(baked)
    reference = _Reference(hooked, exact, unedited, hooked_greedy, sites, last_only_difference)
    return _judge(
        _Found(found, found_greedy, worst_site(baked, sites, SITE_TOLERANCE[dtype]), unused == unused_by_base),
        reference,
        dtype,
        prompts={**prompts.to_json(), "logits_at_last_positions": LOGIT_POSITIONS},
        new_tokens=new_tokens,
    )


def _judge(
    found: _Found, reference: _Reference, dtype: torch.dtype, *, prompts: dict[str, Any], new_tokens: int
) -> ForwardCertificate:
    sixteen_bit = dtype in (torch.bfloat16, torch.float16)
    dtype_name = str(dtype).removeprefix("torch.")
    failures: list[str] = []
    if not found.same_keys_used:
        failures.append("the loader does not use the same tensors of the result as of the base")

    def agreement(size: int, name: str, tensor_of: Callable[[Outputs], torch.Tensor]) -> tuple[float, float]:
        """Error and bound; an error beyond it is a failure."""
        exact = tensor_of(reference.exact[size])
        error, bound = relative_error(tensor_of(found.outputs[size]), exact), END_TO_END_TOLERANCE
        if sixteen_bit:
            noise = relative_error(tensor_of(reference.hooked[size]), exact)
            bound = min(SIXTEEN_BIT_FACTOR * noise, sys.float_info.max)
        if not error <= bound:
            failures.append(f"batch {size}: {name} differ from the hooked base by {error:.2e}, bound {bound:.2e}")
        return error, bound

    comparisons: list[Comparison] = []
    routers: list[RoutingComparison] = []
    for size in BATCH_SIZES:
        exact, unedited = reference.exact[size], reference.unedited[size]
        comparisons.append(
            Comparison(
                size,
                *agreement(size, "residual", lambda outputs: outputs.residual),
                *agreement(size, "logits", lambda outputs: outputs.logits),
                relative_error(unedited.residual, exact.residual),
                relative_error(unedited.logits, exact.logits),
            )
        )
        routing = found.outputs[size].routing
        if routing is not None and exact.routing is not None:
            errors = agreement(size, "routers' logits", lambda outputs: outputs.router_logits)
            routers.append(RoutingComparison(size, *count_flips(routing, exact.routing), *errors))
    greedy = tuple(compare_greedy(size, found.greedy[size], reference.greedy[size]) for size in BATCH_SIZES)
    doubts: list[str] = []
    if not sixteen_bit:
        failures += [reason for entry in greedy for reason in entry.failures()]
        doubts += [reason for entry in greedy for reason in entry.doubts()]
    site = found.worst_site
    if site is not None and not site[1] <= site[2]:
        failures.append(
            f"{site[0]}: given equal input, its output differs from the hook's by {site[1]:.2e}, bound {site[2]:.2e}"
        )
    if any(_moves_too_little(entry, sixteen_bit=sixteen_bit) for entry in comparisons):
        least = min(min(entry.residual_moved, entry.logits_moved) for entry in comparisons)
        doubts.append(
            f"the edit moves the model by {least:.2e} only, less than {MARGIN} tolerances"
            f"{f' or the noise of {dtype_name}' if sixteen_bit else ''}, so agreement shows nothing; use a larger "
            "strength"
        )
    chosen_by = f"the hooked base in {'float32' if sixteen_bit else dtype_name}"
    return ForwardCertificate(
        "failed" if failures else "inconclusive" if doubts else "passed",
        tuple(failures or doubts),
        dtype_name,
        prompts,
        tuple(comparisons),
        {entry.batch_size: entry.equal / entry.prompts for entry in greedy},
        new_tokens,
        reference.last_only_difference,
        site,
        RoutingFigures(chosen_by, tuple(routers), greedy) if routers else None,
    )


def _moves_too_little(entry: Comparison, *, sixteen_bit: bool) -> bool:
    """Whether a bake that does nothing could pass; in 16 bits the dtype's own noise must not hide the edit either."""
    for moved, bound in ((entry.residual_moved, entry.residual_bound), (entry.logits_moved, entry.logits_bound)):
        noise = bound / SIXTEEN_BIT_FACTOR if sixteen_bit else 0.0
        if not moved >= max(MARGIN * END_TO_END_TOLERANCE, noise):
            return True
    return False
