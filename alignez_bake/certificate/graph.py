"""Level `forward` of an ONNX graph: it gives what the hooked base gives, and the baked model that it was made of.

Prompts are read alone and in left-padded batches of 4; in one call with an empty cache, and 8 of the 32 in pieces
behind a filled one, down to single tokens. Then greedy tokens are generated, by the runner that users have. What must
hold:

- weights of 32 or 64 bits: logits agree with both torch models to 1e-4, and greedy tokens are equal. A torch result
  must meet 1e-5; a graph sums in another order in every kernel, and its nodes are fused;
- weights of 16 bits: ‖graph - hooked in fp32‖ <= 1.25 · ‖hooked in 16 bits, in torch - hooked in fp32‖, as for torch
  results. The distance to the baked model, and greedy tokens, are reported: two ways of rounding to 16 bits are not
  nearer to each other than to the truth.

All are relative Frobenius norms over the last 16 tokens of every prompt, padding left out.

**Ties.** Where two tokens are equally likely but for less than the tolerance allows, a right graph may take the other.
A prompt whose first other token is the runner-up in such a near tie is counted, and does not fail; so is one whose
tokens or logits differ after a near tie of experts (`certificate/near_ties.py` has the widths and why). This weakens
nothing: logits within the tolerance are required all the same, and from them it follows that tokens can differ only
there. If more than half of the prompts are such, too few are left, and the verdict is `inconclusive`.

**Experts.** The routers of a graph choose freely; no choice can be given to them. So nothing is replayed in torch
either, and in 16 bits the noise of the hooked base holds its flips too.

**Quantised graphs** are held to nothing but this: what quantisation changes must be less than what the edit changes.
The rules above apply to the graph before quantisation.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, NamedTuple

import torch

from alignez_bake.certificate.forward_passes import LOGIT_POSITIONS
from alignez_bake.certificate.graph_figures import (
    Against,
    GraphCertificate,
    GraphPlace,
    QuantisedComparison,
    QuantisedFigures,
)
from alignez_bake.certificate.graph_judge import (
    CaseMeasured,
    choice_tolerance,
    compare_case,
    compare_greedy,
    doubts,
    failures,
    quantisation_doubts,
)
from alignez_bake.certificate.graph_runs import (
    BATCH_SIZES,
    CASES,
    Case,
    Differences,
    GreedyRun,
    Recorded,
    differences,
    graph_greedy,
    graph_logits,
    torch_greedy,
    torch_logits,
)
from alignez_bake.certificate.near_ties import tied_choices
from alignez_bake.certificate.prompts import fitted_prompts
from alignez_bake.language_model.loading import load_model
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.certificate.prompts import CertificatePrompts
    from alignez_bake.language_model.loading import LoadedModel
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Advance, Progress
    from alignez_bake.runtime.session import OnnxModel

__all__ = ["GraphCertificate", "certify_graph"]

_SIXTEEN_BIT = (torch.bfloat16, torch.float16)

Logits = dict[Case, list[torch.Tensor]]
Tokens = dict[int, list[list[int]]]


class _Hooked(NamedTuple):
    """What the base gave, with its edits and without; the model itself is gone."""

    logits: Logits
    tied: dict[Case, torch.Tensor]
    moved: dict[Case, Differences]
    noise: dict[Case, Differences] | None
    greedy: dict[int, GreedyRun]


class _Found(NamedTuple):
    """What a graph gave."""

    logits: Logits
    greedy: Tokens


def certify_graph(
    base: ModelFolder,
    lowering: Lowering,
    graph: OnnxModel,
    baked: LoadedModel,
    *,
    device: str = "cpu",
    trust_remote_code: bool = False,
    reference: OnnxModel | None = None,
    progress: Progress | None = None,
) -> GraphCertificate:
    """Run a graph against the hooked base and the baked model on 32 prompts, alone and in left-padded batches of 4.

    The hooked base is loaded here, in fp32 first where the weights have 16 bits, and is gone before the graph runs.

    Args:
        base: the base model.
        lowering: the edits that were baked, and how.
        graph: the result, open where it will run.
        baked: the model that the graph was made of, in the graph's dtype; with the base's module paths.
        device: where the hooked base runs.
        trust_remote_code: passed to transformers' loader.
        reference: of a graph with quantised weights, the open graph before quantisation; the exact rules are its.
        progress: counts prompts.

    Raises:
        BadInputError: a base that does not load, a site that the architecture lacks, a graph that ONNX Runtime cannot
            run or whose cache or logits are broken (`Decoder.step`).
    """
    dtype = baked.model.dtype
    prompts, new_tokens = fitted_prompts(base, baked.model, trust_remote_code=trust_remote_code)
    torch_runs = 4 if dtype in _SIXTEEN_BIT else 3
    graphs = 1 if reference is None else 2
    total = (torch_runs + graphs) * sum(len(_prompts_of(case, prompts)) for case in CASES)
    total += (2 + graphs) * (len(prompts.ids) + len(prompts.alone))
    with (progress or NoProgress()).task("running graph, baked and hooked model", total) as advance:
        runs = _Runs(base.architecture, prompts, new_tokens, advance)
        hooked = _hooked_base(base, lowering, dtype, runs, device=device, trust_remote_code=trust_remote_code)
        gc.collect()  # a model is full of references to itself; the graph needs the memory
        baked_logits = {case: runs.logits(baked.model, case).logits for case in CASES}
        baked_greedy = runs.greedy(baked.model)
        exact = runs.of_graph(graph if reference is None else reference)
        measured = [
            CaseMeasured(
                case,
                differences(exact.logits[case], hooked.logits[case]),
                differences(exact.logits[case], baked_logits[case]),
                hooked.moved[case],
                None if hooked.noise is None else hooked.noise[case],
                hooked.tied[case],
            )
            for case in CASES
        ]
        hooked.logits.clear()  # each is as large as prompts times vocabulary
        baked_logits.clear()
        quantised = None if reference is None else _quantised(graph, exact, hooked.moved, runs)
    comparisons = tuple(compare_case(entry) for entry in measured)
    references: list[tuple[Against, dict[int, GreedyRun]]] = [
        ("the hooked base", hooked.greedy),
        ("the baked model", baked_greedy),
    ]
    greedy = tuple(
        compare_greedy(size, against, exact.greedy[size], run[size], dtype)
        for against, run in references
        for size in BATCH_SIZES
    )
    dtype_name = str(dtype).removeprefix("torch.")
    wrong = [reason for entry in comparisons for reason in failures(entry)]
    unsure = doubts(comparisons, dtype_name)
    if dtype not in _SIXTEEN_BIT:
        wrong += [reason for entry in greedy for reason in entry.failures()]
        unsure += [reason for entry in greedy for reason in entry.doubts()]
    if quantised is not None:
        unsure += quantisation_doubts(quantised.comparisons)
    return GraphCertificate(
        "failed" if wrong else "inconclusive" if unsure else "passed",
        tuple(wrong or unsure),
        dtype_name,
        GraphPlace.of(graph if reference is None else reference),
        {**prompts.to_json(), "logits_at_last_positions": LOGIT_POSITIONS},
        comparisons,
        greedy,
        new_tokens,
        quantised,
    )


class _Runs:
    """What is run, for every model the same."""

    def __init__(
        self, architecture: Architecture, prompts: CertificatePrompts, new_tokens: int, advance: Advance
    ) -> None:
        self._architecture, self._prompts = architecture, prompts
        self._new_tokens, self._advance = new_tokens, advance

    def logits(self, model: PreTrainedModel, case: Case) -> Recorded:
        prompts = _prompts_of(case, self._prompts)
        return torch_logits(model, self._architecture, prompts, case, self._advance)

    def greedy(self, model: PreTrainedModel) -> dict[int, GreedyRun]:
        return {
            size: torch_greedy(model, self._architecture, ids, size, self._advance, new_tokens=self._new_tokens)
            for size, ids in self._greedy_prompts()
        }

    def of_graph(self, graph: OnnxModel) -> _Found:
        return _Found(
            {case: graph_logits(graph, _prompts_of(case, self._prompts), case, self._advance) for case in CASES},
            {
                size: graph_greedy(graph, ids, size, self._advance, new_tokens=self._new_tokens)
                for size, ids in self._greedy_prompts()
            },
        )

    def _greedy_prompts(self) -> list[tuple[int, Sequence[Sequence[int]]]]:
        small, large = BATCH_SIZES
        return [(small, self._prompts.alone), (large, self._prompts.ids)]


def _prompts_of(case: Case, prompts: CertificatePrompts) -> Sequence[Sequence[int]]:
    """All, or behind a filled cache some of all lengths: many small calls take long, and a few prompts show as much."""
    return prompts.ids if case.cache == "empty" else prompts.alone


def _hooked_base(
    base: ModelFolder, lowering: Lowering, dtype: torch.dtype, runs: _Runs, *, device: str, trust_remote_code: bool
) -> _Hooked:
    def load(in_dtype: torch.dtype) -> PreTrainedModel:
        return load_model(base, dtype=in_dtype, device=device, trust_remote_code=trust_remote_code).model

    exact: dict[Case, Recorded] = {}
    moved: dict[Case, Differences] = {}

    def run_exact(model: PreTrainedModel) -> None:
        with edited_by_hooks(model, base.architecture, lowering.plan):
            exact.update({case: runs.logits(model, case) for case in CASES})
        for case in CASES:
            moved[case] = differences(runs.logits(model, case).logits, exact[case].logits)

    noise: dict[Case, Differences] | None = None
    if dtype in _SIXTEEN_BIT:
        run_exact(load(torch.float32))
        gc.collect()  # gone before the next one is loaded
    model = load(dtype)
    if dtype not in _SIXTEEN_BIT:
        run_exact(model)
    with edited_by_hooks(model, base.architecture, lowering.plan):
        if dtype in _SIXTEEN_BIT:
            noise = {case: differences(runs.logits(model, case).logits, exact[case].logits) for case in CASES}
        greedy = runs.greedy(model)
    return _Hooked(
        {case: entry.logits for case, entry in exact.items()},
        {case: _tied_prompts(entry, dtype) for case, entry in exact.items()},
        moved,
        noise,
        greedy,
    )


def _tied_prompts(recorded: Recorded, dtype: torch.dtype) -> torch.Tensor:
    if recorded.routing is None:
        return torch.zeros(len(recorded.logits), dtype=torch.bool)
    return torch.stack([tokens.any() for tokens in tied_choices(recorded.routing, choice_tolerance(dtype))])


def _quantised(graph: OnnxModel, exact: _Found, moved: dict[Case, Differences], runs: _Runs) -> QuantisedFigures:
    found = runs.of_graph(graph)
    comparisons = []
    for case in CASES:
        error = differences(found.logits[case], exact.logits[case])
        everything = torch.ones(len(found.logits[case]), dtype=torch.bool)
        comparisons.append(
            QuantisedComparison(
                case.batch_size, case.cache, error.relative(everything), moved[case].relative(everything)
            )
        )
    equal = {}
    for size in BATCH_SIZES:
        pairs = list(zip(found.greedy[size], exact.greedy[size], strict=True))
        equal[size] = sum(tokens == before for tokens, before in pairs) / len(pairs)
    return QuantisedFigures(GraphPlace.of(graph), tuple(comparisons), equal)
