"""A folder for onnxruntime-genai that runs here: certified, and answering by its own runtime."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from alignez_bake.exporters.baked_model import baked_checkpoint, load_baked
from alignez_bake.exporters.onnx_answering import GraphAnswering
from alignez_bake.exporters.onnx_genai_certificate import certify_genai
from alignez_bake.exporters.onnx_genai_running import open_genai
from alignez_bake.exporters.output_folder import scratch_place

from alignez_bake.language_model.loading import tokenizer_of

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.exporters.onnx_genai_certificate import GenaiCertificate
    from alignez_bake.exporters.onnx_genai_running import GenaiModel

    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class GenaiResult:
    """A folder.

    Attributes:
        folder: with `genai_config.json`.
        base: the base model.
        lowering: the edits that were baked, and how.
        dtype: of the baked checkpoint, as `ExportSettings.dtype`.
        trust_remote_code: passed to transformers' loader of the base.
    """

    folder: Path
    base: ModelFolder
    lowering: Lowering
    dtype: str | None
    trust_remote_code: bool

    @cached_property
    def model(self) -> GenaiModel:
        """The folder, opened once."""
        return open_genai(self.folder)

    def certify(self, progress: Progress) -> GenaiCertificate:
        """The folder against the baked and the hooked model; errors as `certify_genai`."""
        result = self.model
        place = scratch_place(self.folder)
        with baked_checkpoint(self.base, self.lowering, place, dtype=self.dtype, progress=progress) as checkpoint:
            baked = load_baked(self.base, self.lowering, checkpoint, device="cpu").model.to(torch.float32)
            return certify_genai(
                self.base,
                self.lowering,
                result,
                baked,
                trust_remote_code=self.trust_remote_code,
                progress=progress,
            )

    def answering(self) -> GraphAnswering:
        """The folder with its base's tokenizer.

        Raises:
            BadInputError: the base has none.
        """
        tokenizer = tokenizer_of(self.base.path, trust_remote_code=self.trust_remote_code)
        return GraphAnswering(self.model.generate, self.base, tokenizer, self.folder, one_at_a_time=True)
