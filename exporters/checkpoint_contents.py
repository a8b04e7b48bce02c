"""Everything that a checkpoint holds, before it is written: what the exporter writes and the certificate expects."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.fp8_blocks import check_stored_as_bf16, scale_of, with_unconverted
from alignez_bake.inserted.model import inserted_model
from alignez_bake.lowering.fold import EditedTensors
from alignez_bake.rehome.changes import changed_tokenizer_entries
from alignez_bake.rehome.tokenizer import TOKENIZER_CONFIG
from alignez_bake.rehome.virtual_tensors import VirtualTensors
from alignez_bake.safetensors_io.dequantised import DequantisedTensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.fp8_blocks import Fp8Blocks
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder


@dataclass(frozen=True)
class CheckpointContents:
    """The parts of a checkpoint.

    Attributes:
        base: the base model.
        home: the model whose tensors it holds: the base, or an equivalent one with more room.
        edited: those that edits change.
        added: parameters of inserted modules, with the dtype that they are stored in.
        config: config.json, but for the weights' dtype.
        code: generated files at the top of the folder, by name.
        rewritten: files of the base that change with its model type, by name: the tokenizer's config.
        dropped: tensors of the base that the result lacks: the scales of FP8 weights that are not FP8 there.
    """

    base: ModelFolder
    home: ModelFolder
    edited: EditedTensors
    config: Mapping[str, Any]
    added: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    rewritten: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    def names_in(self, file: str) -> list[str]:
        """Tensors of one of the base's files: those that lie there already in their order, then new ones by name.

        What inserted modules add lies in the last file.
        """
        stored = [name for name in self.base.tensors.header(file).entries if name not in self.dropped]
        new = [name for name in self.home.tensors if self.home.tensors.file_of(name) == file]
        added = list(self.added) if file == self.base.tensors.files[-1] else []
        return [*stored, *sorted({*new, *added} - {*stored, *self.dropped})]

    @property
    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted({*self.home.tensors, *self.added} - self.dropped)

    def dtype_of(self, name: str) -> str:
        """The dtype that a tensor of the home has in the result, unless all are given another."""
        return self.home.dtype_of_edited(name) if name in self.edited else self.home.tensors.entry(name).dtype

    def is_copied(self, name: str) -> bool:
        """Whether the tensor is the base's, byte for byte (in the stored dtype)."""
        if name in self.added or name in self.edited:
            return False
        tensors = self.home.tensors
        return not isinstance(tensors, VirtualTensors) or tensors.is_base(name)


def checkpoint_contents(base: ModelFolder, lowering: Lowering) -> CheckpointContents:
    """What a lowering makes of a base, as a checkpoint.

    Raises:
        BadInputError: inserts that no generated code can carry.
    """
    if base.fp8_blocks is not None:
        return _fp8_contents(base, base.fp8_blocks, lowering)
    home = lowering.home
    edited = EditedTensors(lowering.folds, home.tensors, lowering.writes)
    rewritten = _rewritten(base, home)
    if not lowering.inserts:
        return CheckpointContents(base, home, edited, home.config, rewritten=rewritten)
    model = inserted_model(home, lowering.inserts, dtype=lowering.dtype)
    return CheckpointContents(base, home, edited, model.config, model.tensors, {model.code_file: model.code}, rewritten)


def _fp8_contents(base: ModelFolder, blocks: Fp8Blocks, lowering: Lowering) -> CheckpointContents:
    """Of an FP8 base: edited weights become BF16 and lose their scales, and config.json says so.

    Raises:
        BadInputError: edits that do not fold, or a config that does not allow this.
    """
    if lowering.inserts or lowering.home is not base:
        raise BadInputError(
            f"{base.path} holds FP8 weights, into which edits fold as they are: leave out constants and gates, or use "
            "the unquantised base"
        )
    edited = EditedTensors(lowering.folds, DequantisedTensors(base.tensors, blocks))
    coded = [name for name in edited.names if blocks.is_coded(base.tensors, name)]
    try:
        check_stored_as_bf16(base.config)
        config = with_unconverted(base.config, base.tensors, coded, base.architecture.head)
    except BadInputError as error:
        raise BadInputError(f"{base.path}: {error}") from None
    return CheckpointContents(base, base, edited, config, dropped=frozenset(map(scale_of, coded)))


def _rewritten(base: ModelFolder, home: ModelFolder) -> dict[str, str]:
    """The tokenizer's config with the entries that keep the tokenizer the same under another model type."""
    changes = changed_tokenizer_entries(base, home)
    if not changes:
        return {}
    config = json.loads((base.path / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    return {TOKENIZER_CONFIG: json.dumps({**config, **changes}, indent=2, ensure_ascii=False) + "\n"}
