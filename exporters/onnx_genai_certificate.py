"""Level `forward` of a folder for onnxruntime-genai: it gives what the hooked base and the baked model give.

By the rules of certificate/graph.py: logits agree to 1e-4, greedy tokens are equal but for near ties; here with the
runtime that users have. The folder computes in float32, so the baked model does too. Of a base in 16 bits the hooked
base is held to what 16 bits lose, and the baked model, whose weights are then the graph's own, to 1e-4 all the same.

Prompts are read one at a time, of all lengths, and four at a time where they are cut to the same length: there is no
left padding in onnxruntime-genai's graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from alignez_bake.exporters.onnx_genai_running import until

from alignez_bake.certificate.forward_passes import LOGIT_POSITIONS
from alignez_bake.certificate.graph_judge import (
    GRAPH_TOLERANCE,
    CaseMeasured,
    compare_case,
    compare_greedy,
    doubts,
    failures,
)
from alignez_bake.certificate.graph_runs import BATCH_SIZES, Case, differences, torch_greedy, torch_logits
from alignez_bake.certificate.prompts import fitted_prompts
from alignez_bake.language_model.loading import load_model
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.exporters.onnx_genai_running import GenaiModel
    from transformers import PreTrainedModel

    from alignez_bake.certificate.graph_figures import GraphComparison, GraphGreedy
    from alignez_bake.certificate.graph_runs import GreedyRun
    from alignez_bake.certificate.prompts import CertificatePrompts
    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Advance, Progress

_CASES: Final = tuple(Case(size, "empty") for size in BATCH_SIZES)
_SIXTEEN_BIT: Final = (torch.bfloat16, torch.float16)

Prompts = dict[Case, tuple[tuple[int, ...], ...]]
Logits = dict[Case, list[torch.Tensor]]


@dataclass(frozen=True)
class GenaiCertificate:
    """What a folder gives beside the hooked base and the baked model.

    Attributes:
        verdict: `inconclusive` if the edit moves the logits by less than 100 tolerances, or near ties leave too few
            prompts.
        reasons: one line each for what went wrong.
        base_dtype: of the base's weights.
        prompts: where they come from, how many, and their lengths.
        comparisons: of logits, one for each batch size.
        greedy: one for each batch size and torch model.
        greedy_tokens: most tokens compared after each prompt; a text that ends before is compared up to there.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    base_dtype: str
    prompts: dict[str, Any]
    comparisons: tuple[GraphComparison, ...]
    greedy: tuple[GraphGreedy, ...]
    greedy_tokens: int
    level: Level = field(default="forward", init=False)

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        return {
            "level": self.level,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "runtime": "onnxruntime-genai",
            "base_dtype": self.base_dtype,
            "prompts": self.prompts,
            "comparisons": [entry._asdict() for entry in self.comparisons],
            "greedy": {"tokens": self.greedy_tokens, "comparisons": [entry._asdict() for entry in self.greedy]},
        }

    def main_figures(self) -> list[tuple[str, str]]:
        """For people: name and value."""
        rows = []
        for entry in self.comparisons:
            hooked = (
                f"error {entry.error_to_hooked_base:.1e} to the hooked base (bound {entry.bound_to_hooked_base:.1e})"
            )
            baked = f"{entry.error_to_baked_model:.1e} to the baked model (bound {GRAPH_TOLERANCE:.1e})"
            rows.append((f"logits, batch {entry.batch_size}", f"{hooked}, {baked}, edit moves {entry.moved:.1e}"))
        for found in self.greedy:
            name = f"{self.greedy_tokens} greedy tokens equal to {found.against}'s, batch {found.batch_size}"
            rows.append((name, f"{found.equal} of {found.prompts} prompts"))
        return rows


class _Torch(NamedTuple):
    """What a torch model gave."""

    logits: Logits
    greedy: dict[Case, GreedyRun]


def certify_genai(
    base: ModelFolder,
    lowering: Lowering,
    result: GenaiModel,
    baked: PreTrainedModel,
    *,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> GenaiCertificate:
    """Run a folder against the hooked base and the baked model.

    Args:
        base: the base model.
        lowering: the edits that were baked, and how.
        result: the folder, open.
        baked: the checkpoint that it was built from, in float32, with the base's module paths.
        trust_remote_code: passed to transformers' loader.
        progress: counts prompts.

    Raises:
        BadInputError: a base that does not load, or a site that the architecture lacks.
    """
    stored = load_model(base, trust_remote_code=trust_remote_code).model
    dtype = stored.dtype
    prompts, new_tokens = fitted_prompts(base, baked, trust_remote_code=trust_remote_code)
    given = _prompts(prompts)
    sixteen_bit = dtype in _SIXTEEN_BIT
    total = (6 if sixteen_bit else 5) * sum(map(len, given.values()))
    with (progress or NoProgress()).task("running graph, baked and hooked model", total) as advance:
        runs = _Runs(base, given, new_tokens, advance)
        found_logits = {case: _genai_logits(result, ids, case, advance) for case, ids in given.items()}
        found_tokens = {case: _genai_greedy(result, ids, case, new_tokens) for case, ids in given.items()}
        from_baked = runs.everything(baked)
        noise = None
        if sixteen_bit:
            with edited_by_hooks(stored, base.architecture, lowering.plan):
                noise = runs.logits(stored)
            stored = load_model(base, dtype=torch.float32, trust_remote_code=trust_remote_code).model
        unedited = runs.logits(stored)
        with edited_by_hooks(stored, base.architecture, lowering.plan):
            hooked = runs.everything(stored)
    measured = [
        CaseMeasured(
            case,
            differences(found_logits[case], hooked.logits[case]),
            differences(found_logits[case], from_baked.logits[case]),
            differences(unedited[case], hooked.logits[case]),
            None if noise is None else differences(noise[case], hooked.logits[case]),
            torch.zeros(len(given[case]), dtype=torch.bool),
        )
        for case in _CASES
    ]
    comparisons = tuple(compare_case(entry) for entry in measured)
    references = [("the baked model", from_baked), *([] if sixteen_bit else [("the hooked base", hooked)])]
    greedy = tuple(
        compare_greedy(
            case.batch_size,
            name,  # type: ignore[arg-type]
            *_until_ends(found_tokens[case], reference.greedy[case], result.ends, new_tokens),
            torch.float32,
        )
        for name, reference in references
        for case in _CASES
    )
    wrong = [reason for entry in comparisons for reason in failures(entry)]
    wrong += [
        f"batch {entry.batch_size}: logits differ from those of the baked model by {entry.error_to_baked_model:.2e}, "
        f"bound {GRAPH_TOLERANCE:.2e}"
        for entry in comparisons
        if sixteen_bit and not entry.error_to_baked_model <= GRAPH_TOLERANCE
    ]
    wrong += [reason for found in greedy for reason in found.failures()]
    dtype_name = str(dtype).removeprefix("torch.")
    unsure = doubts(comparisons, dtype_name) + [reason for found in greedy for reason in found.doubts()]
    return GenaiCertificate(
        "failed" if wrong else "inconclusive" if unsure else "passed",
        tuple(wrong or unsure),
        dtype_name,
        {**prompts.to_json(), "logits_at_last_positions": LOGIT_POSITIONS},
        comparisons,
        greedy,
        new_tokens,
    )


class _Runs:
    """What is run in torch, for every model the same."""

    def __init__(self, base: ModelFolder, prompts: Prompts, new_tokens: int, advance: Advance) -> None:
        self._architecture, self._prompts = base.architecture, prompts
        self._new_tokens, self._advance = new_tokens, advance

    def logits(self, model: PreTrainedModel) -> Logits:
        return {
            case: torch_logits(model, self._architecture, ids, case, self._advance).logits
            for case, ids in self._prompts.items()
        }

    def everything(self, model: PreTrainedModel) -> _Torch:
        greedy = {
            case: torch_greedy(
                model, self._architecture, ids, case.batch_size, lambda _count=1: None, new_tokens=self._new_tokens
            )
            for case, ids in self._prompts.items()
        }
        return _Torch(self.logits(model), greedy)


def _prompts(prompts: CertificatePrompts) -> Prompts:
    """Some of all lengths for one at a time; all, cut to the shortest, for several."""
    alone, together = _CASES
    shortest = min(map(len, prompts.ids))
    return {alone: prompts.alone, together: tuple(ids[:shortest] for ids in prompts.ids)}


def _genai_logits(
    result: GenaiModel, prompts: Sequence[Sequence[int]], case: Case, advance: Advance
) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for start in range(0, len(prompts), case.batch_size):
        batch = prompts[start : start + case.batch_size]
        found += list(torch.from_numpy(result.logits(batch)[:, -LOGIT_POSITIONS:].copy()))
        advance(len(batch))
    return found


def _genai_greedy(result: GenaiModel, prompts: Sequence[Sequence[int]], case: Case, new_tokens: int) -> list[list[int]]:
    starts = range(0, len(prompts), case.batch_size)
    batches = [prompts[start : start + case.batch_size] for start in starts]
    return [row for batch in batches for row in result.generate(batch, new_tokens=new_tokens)]


def _until_ends(
    found: Sequence[Sequence[int]], reference: GreedyRun, ends: frozenset[int], length: int
) -> tuple[list[list[int]], GreedyRun]:
    """Both texts up to their ends, filled up with an end: onnxruntime-genai stops where torch was told to go on."""
    filler = min(ends)

    def filled(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        cut = [until(row, ends) for row in rows]
        return [row + [filler] * (length - len(row)) for row in cut]

    return filled(found), reference._replace(tokens=filled(reference.tokens))
