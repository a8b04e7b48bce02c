"""A model folder as it lies on disk: config, architecture, tensors; nothing is run, torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alignez_bake.architectures.architecture import Architecture, architecture_for
from alignez_bake.edit_plan import BaseFingerprint
from alignez_bake.errors import BadInputError
from alignez_bake.fp8_blocks import STORED, fp8_blocks
from alignez_bake.safetensors_io.fingerprint import config_sha256, tensors_sha256
from alignez_bake.safetensors_io.folder_layout import check_inside
from alignez_bake.safetensors_io.reader import open_folder
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.fp8_blocks import Fp8Blocks
    from alignez_bake.safetensors_io.reader import TensorFolder

_MAX_CONFIG_BYTES = 16 * 1024 * 1024
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")
# Where there is no unquantised release.
_DEQUANTISE = {
    "mxfp4": "; from_pretrained(BASE, quantization_config=Mxfp4Config(dequantize=True)) and save_pretrained make one"
}


@dataclass(frozen=True)
class ModelFolder:
    """A base or baked model on disk, checked as far as its config and headers allow.

    Attributes:
        path: the folder.
        config: config.json.
        architecture: where its sites lie.
        tensors: lazy reader of its safetensors files.
        fp8_blocks: how its FP8 weights are scaled; None where it has none.
    """

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    tensors: TensorFolder
    fp8_blocks: Fp8Blocks | None = None

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.architecture.num_layers(self.config)

    def dtype_of_edited(self, name: str) -> str:
        """The dtype that a tensor has in a result once it is edited: the stored one, BF16 for FP8 codes."""
        coded = self.fp8_blocks is not None and self.fp8_blocks.is_coded(self.tensors, name)
        return STORED if coded else self.tensors.entry(name).dtype

    @cached_property
    def fingerprint(self) -> BaseFingerprint:
        """What edits made for this base are tied to."""
        return BaseFingerprint(
            model_type=self.architecture.model_type,
            config_sha256=config_sha256(self.config),
            tensors_sha256=tensors_sha256(self.tensors),
        )


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        BadInputError: no such folder, no config.json, a symlink that leaves the folder (other than the hub cache's
            own), or text that `parse_object` refuses.
    """
    file = path / "config.json"
    try:
        if not path.exists():
            raise BadInputError(f"no such model folder: {path}")
        if not path.is_dir():
            raise BadInputError(f"{path} is a file: a model is a folder with config.json and safetensors files")
        if not file.is_file():
            raise BadInputError(f"{path} is no model folder: it has no config.json")
        check_inside(path, file.name)
        size = file.stat().st_size
        if size > _MAX_CONFIG_BYTES:
            raise BadInputError(f"{file} has {size} bytes: a config has at most {_MAX_CONFIG_BYTES}")
        data = file.read_bytes()
    except OSError as error:
        raise BadInputError(f"{file}: cannot be read ({error.strerror or error}): check its permissions") from error
    return parse_object(data, str(file))


def open_model_folder(path: Path, *, fp8: bool = False, tensors: TensorFolder | None = None) -> ModelFolder:
    """Open a causal language model's folder, and refuse by name what cannot be baked.

    Args:
        path: the folder.
        fp8: whether FP8 weights with a scale a block are known to the caller; its tensors are codes then.
        tensors: those of the model, where they do not lie in the folder.

    Raises:
        BadInputError: no such folder, no model, no causal head, quantised or pickled weights, an
            architecture that is not described, or damaged files.
    """
    config = read_config(path)
    blocks = _fp8_blocks(path, config)
    if blocks is not None and not fp8:
        raise BadInputError(
            f"{path} holds FP8 weights with a scale a block, which `bake --as checkpoint`, `verify` and `restore` "
            "alone read: use the unquantised base here; edits made for it fold into this one with --allow-other-base"
        )
    classes = config.get("architectures") or []
    if not isinstance(classes, list):
        raise BadInputError(
            f"{path}/config.json has architectures = {shown(classes)}: it must be a list of class names"
        )
    if classes and not any(str(name).endswith(_CAUSAL_SUFFIXES) for name in classes):
        plain = all(isinstance(name, str) and name.isidentifier() and len(name) <= 100 for name in classes)
        found = ", ".join(classes) if plain else shown(classes)
        raise BadInputError(f"{path} has no causal language-model head: its class is {found}")
    try:
        architecture = architecture_for(config)
        layers = architecture.num_layers(config)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None
    tensors = open_folder(path) if tensors is None else tensors
    if layers > len(tensors):
        raise BadInputError(
            f"{path}/config.json says {shown(layers)} layers, but the files hold {len(tensors)} tensors: they do not "
            "belong together"
        )
    return ModelFolder(path, config, architecture, tensors, blocks)


def _fp8_blocks(path: Path, config: dict[str, Any]) -> Fp8Blocks | None:
    """How FP8 weights are scaled; None where weights are not quantised.

    Raises:
        BadInputError: any other quantised format, by name.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    if isinstance(quantization, dict):
        try:
            if (blocks := fp8_blocks(quantization)) is not None:
                return blocks
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from None
    method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
    way_out = _DEQUANTISE.get(method, "") if isinstance(method, str) else ""
    raise BadInputError(
        f"{path} holds quantised weights (quant_method {shown(method)}), into which an edit cannot be folded: "
        f"use the unquantised base, bake it, and quantise the result{way_out}"
    )
