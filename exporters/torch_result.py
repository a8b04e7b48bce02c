"""An artefact that transformers runs: certified by certificate/forward.py, and answering by our token loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.certificate.forward import certify_forward
from alignez_bake.language_model.answering import TorchAnswering
from alignez_bake.language_model.loading import LanguageModel, tokenizer_of

if TYPE_CHECKING:
    from alignez_bake.certificate.forward import ForwardCertificate
    from alignez_bake.language_model.loading import LoadedModel
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class TorchResult:
    """A live model, whose module tree has its base's paths.

    Attributes:
        loaded: the artefact, loaded from disk.
        base: the base model.
        lowering: the edits that were baked, and how.
        device: where it runs, and where the hooked base will.
        trust_remote_code: passed to transformers' loader of the base.
    """

    loaded: LoadedModel
    base: ModelFolder
    lowering: Lowering
    device: str
    trust_remote_code: bool

    def certify(self, progress: Progress) -> ForwardCertificate:
        """It against the hooked base; errors as `certify_forward`."""
        return certify_forward(
            self.base,
            self.lowering,
            self.loaded,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            progress=progress,
        )

    def answering(self) -> TorchAnswering:
        """It with its base's tokenizer.

        Raises:
            BadInputError: the base has none.
        """
        model = self.loaded.model
        tokenizer = tokenizer_of(self.base.path, trust_remote_code=self.trust_remote_code)
        return TorchAnswering(
            LanguageModel(model, tokenizer, self.base.architecture, self.base, model.device, self.loaded.unused_keys)
        )
