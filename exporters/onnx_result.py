"""A graph that runs here: certified against the baked and the hooked model, and answering by our runner."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from alignez_bake.exporters.baked_model import baked_checkpoint, load_baked
from alignez_bake.exporters.onnx import providers_for
from alignez_bake.exporters.onnx_answering import GraphAnswering
from alignez_bake.exporters.onnx_reference import graph_before_quantisation
from alignez_bake.exporters.output_folder import scratch_place

from alignez_bake.certificate.graph import certify_graph
from alignez_bake.language_model.loading import tokenizer_of
from alignez_bake.runtime.choose import Sampling
from alignez_bake.runtime.generate import generate
from alignez_bake.runtime.session import open_session
from alignez_bake.runtime.side_files import SideFiles
from alignez_bake.runtime.special_ids import configured_stop_ids, in_vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.exporters.protocol import ExportSettings
    from transformers import PreTrainedTokenizerBase

    from alignez_bake.certificate.graph import GraphCertificate
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.runtime.session import OnnxModel


@dataclass(frozen=True)
class GraphResult:
    """A folder with a graph.

    Attributes:
        graph: the `.onnx` file.
        base: the base model.
        lowering: the edits that were baked, and how.
        settings: what it was made with.
        device: where graph and models run.
        trust_remote_code: passed to transformers' loader of the base.
    """

    graph: Path
    base: ModelFolder
    lowering: Lowering
    settings: ExportSettings
    device: str
    trust_remote_code: bool

    @cached_property
    def session(self) -> OnnxModel:
        """The graph, opened once."""
        return open_session(self.graph, providers_for(self.device))

    def certify(self, progress: Progress) -> GraphCertificate:
        """The graph against the baked and the hooked model; errors as `certify_graph`.

        Of quantised weights, the graph that they were made of meets the exact bounds, and is what they are compared
        with: it is made again.
        """
        out, dtype = self.graph.parent, self.settings.dtype
        with ExitStack() as stack:
            reference = None
            if self.settings.weight_bits is not None:
                source = graph_before_quantisation(self.base, self.lowering, out, self.settings, progress)
                reference = open_session(stack.enter_context(source), providers_for(self.device))
            checkpoint = baked_checkpoint(self.base, self.lowering, scratch_place(out), dtype=dtype, progress=progress)
            folder = stack.enter_context(checkpoint)
            return certify_graph(
                self.base,
                self.lowering,
                self.session,
                load_baked(self.base, self.lowering, folder, device=self.device),
                device=self.device,
                trust_remote_code=self.trust_remote_code,
                reference=reference,
                progress=progress,
            )

    def answering(self) -> GraphAnswering:
        """The graph with its base's tokenizer.

        Raises:
            BadInputError: the base has none.
        """
        tokenizer = tokenizer_of(self.base.path, trust_remote_code=self.trust_remote_code)
        return _answering(self.session, self.base, tokenizer)


def answering_graph(folder: Path, base: ModelFolder, *, device: str, trust_remote_code: bool) -> GraphAnswering:
    """The graph of a folder of any origin, with the tokenizer of the model that it was made of.

    Raises:
        BadInputError: a device without a provider, a graph that cannot be opened, or a base without a tokenizer.
    """
    tokenizer = tokenizer_of(base.path, trust_remote_code=trust_remote_code)
    return _answering(open_session(folder, providers_for(device)), base, tokenizer)


def _answering(session: OnnxModel, base: ModelFolder, tokenizer: PreTrainedTokenizerBase) -> GraphAnswering:
    return GraphAnswering(_Generator(session, tokenizer), base, tokenizer, session.path)


@dataclass(frozen=True)
class _Generator:
    """Our runner, as `Generate`."""

    session: OnnxModel
    tokenizer: PreTrainedTokenizerBase

    def __call__(
        self, prompts: Sequence[Sequence[int]], /, *, new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        sampling = None if temperature == 0 else Sampling(temperature=temperature, seed=seed)
        return generate(self.session, prompts, max_new_tokens=new_tokens, stop_ids=self._stop_ids, sampling=sampling)

    @cached_property
    def _stop_ids(self) -> frozenset[int]:
        """As `LanguageModel.eos_ids`: those of the configs, and the tokenizer's own."""
        eos = self.tokenizer.eos_token_id
        ids = configured_stop_ids(SideFiles(self.session.path.parent, self.session.path)) | (
            frozenset() if eos is None else {int(eos)}
        )
        return in_vocabulary(ids, self.session.signature.vocabulary)
