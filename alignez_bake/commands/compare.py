"""`compare`: base and aligned model answer the same prompts, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.commands.aligned_model import open_aligned
from alignez_bake.commands.answers import answers
from alignez_bake.prompts.queries import shipped_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.answering import Answering
    from alignez_bake.progress import Progress

_DEFAULT_PROMPTS = 4


@dataclass(frozen=True)
class ComparedAnswer:
    """What both models answered to one prompt."""

    prompt: str
    base: str
    aligned: str


@dataclass(frozen=True)
class CompareResult:
    """All answers, in the order of the prompts."""

    answers: tuple[ComparedAnswer, ...]

    def to_json(self) -> dict[str, Any]:
        """The answers as JSON values."""
        return {"answers": [asdict(answer) for answer in self.answers]}


def compare(
    aligned: str | Path,
    model: str | Path | None = None,
    *,
    prompts: Sequence[str] = (),
    prompt_template: str | None = None,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    device: str = "cpu",
    batch_size: int = 16,
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> CompareResult:
    """Let base and aligned model answer.

    Args:
        aligned: a result folder of any kind that runs here, or a folder of any origin with a model or an ONNX graph.
        model: the base's folder or hub id; unless given where it lay at baking, or what the hub's cache has of it.
        prompts: queries; a few of the shipped ones unless given.
        prompt_template: how a query becomes a prompt; the form that the result was made with unless given.
        max_new_tokens: most tokens of an answer.
        temperature: 0 is greedy.
        device: where both run, one after the other.
        batch_size: prompts that run together.
        seed: of the samples, the same for both models.
        trust_remote_code: passed to transformers' loader.
        progress: counts answers.

    Raises:
        BadInputError: a folder that does not load, or a prompt that is too long.
    """
    aligned_model = open_aligned(Path(aligned), model)
    template = aligned_model.template if prompt_template is None else prompt_template
    queries = list(prompts) or [query["query"] for query in shipped_queries("helpful")[:_DEFAULT_PROMPTS]]

    def answered(answering: Answering) -> list[str]:
        return answers(
            answering,
            queries,
            template=template,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            temperature=temperature,
            progress=progress,
        )

    before = answered(aligned_model.load_base(device=device, trust_remote_code=trust_remote_code))
    after = answered(aligned_model.load(device=device, trust_remote_code=trust_remote_code))
    return CompareResult(tuple(map(ComparedAnswer, queries, before, after)))
