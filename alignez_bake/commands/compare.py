"""`compare`: base and aligned model answer the same prompts, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.commands.answers import answers, recorded_template
from alignez_bake.commands.opened import is_patched, open_result
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.hub.download import base_folder
from alignez_bake.language_model.answering import TorchAnswering
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.prompts.queries import shipped_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.answering import Answering
    from alignez_bake.model_folder import ModelFolder
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
    aligned = Path(aligned)
    opened = open_result(aligned, model) if (aligned / OURS).is_dir() and not is_patched(aligned) else None
    if opened is None and model is None:
        raise BadInputError(f"{aligned} does not say what its base is: name it with --model BASE")
    base = open_model_folder(base_folder(str(model))) if opened is None else opened.base
    template = prompt_template
    if template is None and opened is not None:
        template = recorded_template(opened.lowering.plan)
    queries = list(prompts) or [query["query"] for query in shipped_queries("helpful")[:_DEFAULT_PROMPTS]]

    def loaded(folder: ModelFolder) -> Answering:
        return TorchAnswering(load_language_model(folder, device=device, trust_remote_code=trust_remote_code))

    def aligned_model() -> Answering:
        if opened is None and list(aligned.glob("*.onnx")):
            # Needs ONNX Runtime, which other folders do without.
            from alignez_bake.exporters.onnx_result import answering_graph  # noqa: PLC0415

            return answering_graph(aligned, base, device=device, trust_remote_code=trust_remote_code)
        if opened is None:
            return loaded(open_model_folder(aligned))
        return opened.exporter.reload(
            base, aligned, opened.lowering, device=device, trust_remote_code=trust_remote_code
        ).answering()

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

    before = answered(loaded(base))
    after = answered(aligned_model())
    return CompareResult(tuple(map(ComparedAnswer, queries, before, after)))
