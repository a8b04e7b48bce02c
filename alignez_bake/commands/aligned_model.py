"""An aligned model beside its base, whatever it is: what `compare` and `eval` let answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.commands.answers import recorded_template
from alignez_bake.commands.opened import is_patched, open_result
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.hub.download import base_folder
from alignez_bake.language_model.answering import TorchAnswering
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.commands.opened import OpenedResult
    from alignez_bake.language_model.answering import Answering
    from alignez_bake.model_folder import ModelFolder


@dataclass(frozen=True)
class AlignedModel:
    """An aligned model on disk; made by `open_aligned`.

    Attributes:
        path: its folder.
        base: the model that it was made of, or that was named as such.
        opened: what it was made of, of a result of ours; None of a folder of any origin, and of a patched graph.
    """

    path: Path
    base: ModelFolder
    opened: OpenedResult | None

    @property
    def template(self) -> str | None:
        """The prompt template that its edits were fitted with, if that is known."""
        return None if self.opened is None else recorded_template(self.opened.lowering.plan)

    def load_base(self, *, device: str, trust_remote_code: bool) -> TorchAnswering:
        """The base; errors as `load_language_model`."""
        return answering_folder(self.base, device=device, trust_remote_code=trust_remote_code)

    def load(self, *, device: str, trust_remote_code: bool) -> Answering:
        """It, loaded as its users load it.

        Raises:
            BadInputError: it does not load, or does not run here.
        """
        if self.opened is not None:
            return self.opened.exporter.reload(
                self.base, self.path, self.opened.lowering, device=device, trust_remote_code=trust_remote_code
            ).answering()
        if list(self.path.glob("*.onnx")):
            # Needs ONNX Runtime, which other folders do without.
            from alignez_bake.exporters.onnx_result import answering_graph  # noqa: PLC0415

            return answering_graph(self.path, self.base, device=device, trust_remote_code=trust_remote_code)
        return answering_folder(open_model_folder(self.path), device=device, trust_remote_code=trust_remote_code)


def open_aligned(aligned: Path, model: str | Path | None) -> AlignedModel:
    """An aligned model, and its base.

    Args:
        aligned: a result folder of any kind, or a folder of any origin with a model or an ONNX graph.
        model: the base's folder or hub id; of a result where it lay at baking unless given.

    Raises:
        BadInputError: a result that is damaged or of another base, or no base.
    """
    if (aligned / OURS).is_dir() and not is_patched(aligned):
        opened = open_result(aligned, model)
        return AlignedModel(aligned, opened.base, opened)
    if model is None:
        raise BadInputError(f"{aligned} does not say what its base is: name it with --model BASE")
    return AlignedModel(aligned, open_model_folder(base_folder(str(model))), None)


def answering_folder(folder: ModelFolder, *, device: str, trust_remote_code: bool) -> TorchAnswering:
    """A model folder that answers; errors as `load_language_model`."""
    return TorchAnswering(load_language_model(folder, device=device, trust_remote_code=trust_remote_code))
