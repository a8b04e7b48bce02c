"""What the comparison of an ONNX graph with the models that it stands for found. No torch is needed to say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.runtime.session import OnnxModel

Against = Literal["the hooked base", "the baked model"]


class GraphPlace(NamedTuple):
    """A graph, and where it ran.

    Attributes:
        file: name of the `.onnx` file.
        provider: ONNX Runtime's name of the first provider that was asked for.
        nodes: number of nodes by provider, as ONNX Runtime optimised them; None where it cannot say.
    """

    file: str
    provider: str
    nodes: dict[str, int] | None

    @classmethod
    def of(cls, graph: OnnxModel) -> GraphPlace:
        """Of an open session."""
        nodes = None if graph.placement is None else dict(graph.placement.nodes)
        return cls(graph.path.name, graph.provider.kind.runtime_name, nodes)

    def shown(self) -> str:
        """For people: `212 nodes at CPUExecutionProvider`."""
        if self.nodes is None:
            return f"at {self.provider}, number of nodes unknown"
        return ", ".join(f"{count} nodes at {provider}" for provider, count in self.nodes.items())


class GraphComparison(NamedTuple):
    """Relative errors of the graph's logits, in one way of reading the prompts.

    Attributes:
        batch_size: prompts read together.
        cache: `empty`: the whole prompt in one call; `filled`: in pieces, behind a cache.
        prompts: how many.
        left_out: prompts whose logits differ, and where some expert was nearly tied: in none of the errors below.
        error_to_hooked_base: in fp32 where the graph has 16 bits.
        bound_to_hooked_base: what that must not exceed.
        error_to_baked_model: against torch in the graph's dtype.
        bound_to_baked_model: None where it is reported, with nothing to be met: in 16 bits.
        moved: how far the edit moves the base's logits.
    """

    batch_size: int
    cache: str
    prompts: int
    left_out: int
    error_to_hooked_base: float
    bound_to_hooked_base: float
    error_to_baked_model: float
    bound_to_baked_model: float | None
    moved: float


class GraphGreedy(NamedTuple):
    """Greedy tokens of the graph beside those of a torch model.

    Attributes:
        batch_size: prompts generated together.
        against: which model.
        prompts: how many.
        equal: prompts whose tokens are all equal.
        tied_tokens: prompts whose first other token is the torch model's runner-up in a near tie.
        tied_experts: prompts whose tokens differ after a near tie of experts.
    """

    batch_size: int
    against: Against
    prompts: int
    equal: int
    tied_tokens: int
    tied_experts: int

    def failures(self) -> list[str]:
        """The reason, if tokens differ where nothing was nearly tied, and equality is required."""
        left_out = self.tied_tokens + self.tied_experts
        wrong = self.prompts - self.equal - left_out
        if not wrong:
            return []
        ties = f"; {left_out} more differ after a near tie, which shows nothing" if left_out else ""
        return [
            (
                f"batch {self.batch_size}: the graph's greedy tokens differ from those of {self.against} on {wrong} of "
                f"{self.prompts} prompts with nothing nearly tied{ties}"
            )
        ]

    def doubts(self) -> list[str]:
        """The reason, if too many prompts differ after near ties for the others to show much."""
        left_out = self.tied_tokens + self.tied_experts
        if 2 * left_out <= self.prompts:
            return []
        return [
            (
                f"batch {self.batch_size}: the graph's greedy tokens differ from those of {self.against} after a near "
                f"tie on {left_out} of {self.prompts} prompts, which shows nothing, and too few prompts are left"
            )
        ]


class QuantisedComparison(NamedTuple):
    """How much of the logits quantisation changed, beside what the edit changes.

    Attributes:
        batch_size: prompts read together.
        cache: as in `GraphComparison`.
        error_to_exact_graph: relative error of the quantised graph's logits against the graph before quantisation.
        moved: how far the edit moves the base's logits.
    """

    batch_size: int
    cache: str
    error_to_exact_graph: float
    moved: float


class QuantisedFigures(NamedTuple):
    """What quantisation did to a graph.

    Attributes:
        graph: the quantised graph.
        comparisons: one for each way of reading the prompts.
        greedy_equal: for each batch size the share of prompts whose greedy tokens are those of the exact graph.
    """

    graph: GraphPlace
    comparisons: tuple[QuantisedComparison, ...]
    greedy_equal: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        return {
            "graph": self.graph._asdict(),
            "comparisons": [entry._asdict() for entry in self.comparisons],
            "greedy_equal_share_to_exact_graph": {f"batch {size}": share for size, share in self.greedy_equal.items()},
        }


@dataclass(frozen=True)
class GraphCertificate:
    """What a graph gives beside the hooked base and the baked model; `certificate/graph.py` says what must hold.

    Attributes:
        verdict: `inconclusive` if the edit moves the logits by less than 100 tolerances, if near ties leave too few
            prompts, or if quantisation changes the logits as much as the edit does.
        reasons: one line each for what went wrong.
        dtype: of the exact graph's weights.
        exact_graph: the graph of `comparisons` and `greedy`; of a quantised result, the graph before quantisation.
        prompts: where they come from, how many, and their lengths.
        comparisons: one for each batch size and state of the cache.
        greedy: one for each batch size and torch model.
        greedy_tokens: number of tokens compared after each prompt.
        quantised: of the quantised graph, which is the result; None where nothing is quantised.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    dtype: str
    exact_graph: GraphPlace
    prompts: dict[str, Any]
    comparisons: tuple[GraphComparison, ...]
    greedy: tuple[GraphGreedy, ...]
    greedy_tokens: int
    quantised: QuantisedFigures | None = None
    level: Level = field(default="forward", init=False)

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        return {
            "level": self.level,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "dtype": self.dtype,
            "exact_graph": self.exact_graph._asdict(),
            "prompts": self.prompts,
            "comparisons": [entry._asdict() for entry in self.comparisons],
            "greedy": {"tokens": self.greedy_tokens, "comparisons": [entry._asdict() for entry in self.greedy]},
            "quantised": None if self.quantised is None else self.quantised.to_json(),
        }

    def main_figures(self) -> list[tuple[str, str]]:
        """For people: name and value."""
        before = "" if self.quantised is None else "before quantisation: "
        rows = [(f"{before}graph, {self.dtype}", self.exact_graph.shown())]
        for entry in self.comparisons:
            rows.append((f"{before}logits, {_case(entry)}", _errors(entry)))
            if entry.left_out:
                left_out = f"{entry.left_out} of {entry.prompts} prompts"
                rows.append((f"{before}left out after a near tie of experts, {_case(entry)}", left_out))
        for against in dict.fromkeys(entry.against for entry in self.greedy):
            entries = [entry for entry in self.greedy if entry.against == against]
            shares = ", ".join(f"batch {entry.batch_size}: {entry.equal / entry.prompts:.0%}" for entry in entries)
            rows.append((f"{before}{self.greedy_tokens} greedy tokens equal to {against}'s", shares))
            tied = ", ".join(
                f"batch {entry.batch_size}: {count} of {entry.prompts} prompts"
                for entry in entries
                if (count := entry.tied_tokens + entry.tied_experts)
            )
            rows += [(f"{before}tokens differ from {against}'s after a near tie", tied)] if tied else []
        return rows + ([] if self.quantised is None else _quantised_rows(self.quantised, self.greedy_tokens))


def _case(entry: GraphComparison | QuantisedComparison) -> str:
    return f"batch {entry.batch_size}, {entry.cache} cache"


def _errors(entry: GraphComparison) -> str:
    hooked = f"error {entry.error_to_hooked_base:.1e} to the hooked base (bound {entry.bound_to_hooked_base:.1e})"
    bound = "" if entry.bound_to_baked_model is None else f" (bound {entry.bound_to_baked_model:.1e})"
    return f"{hooked}, {entry.error_to_baked_model:.1e} to the baked model{bound}, edit moves {entry.moved:.1e}"


def _quantised_rows(figures: QuantisedFigures, tokens: int) -> list[tuple[str, str]]:
    rows = [("quantised graph", figures.graph.shown())]
    for entry in figures.comparisons:
        text = f"error {entry.error_to_exact_graph:.1e} to the graph before, edit moves {entry.moved:.1e}"
        rows.append((f"quantised graph: logits, {_case(entry)}", text))
    shares = ", ".join(f"batch {size}: {share:.0%}" for size, share in figures.greedy_equal.items())
    return [*rows, (f"quantised graph: {tokens} greedy tokens equal to the graph's before", shares)]
