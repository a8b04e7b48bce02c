"""Everything that a checkpoint holds, before it is written: what the exporter writes and the certificate expects."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignez_bake.inserted.model import inserted_model
from alignez_bake.lowering.fold import EditedTensors
from alignez_bake.rehome.changes import changed_tokenizer_entries
from alignez_bake.rehome.tokenizer import TOKENIZER_CONFIG
from alignez_bake.rehome.virtual_tensors import VirtualTensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

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
    """

    base: ModelFolder
    home: ModelFolder
    edited: EditedTensors
    config: Mapping[str, Any]
    added: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    rewritten: Mapping[str, str] = field(default_factory=dict)

    def names_in(self, file: str) -> list[str]:
        """Tensors of one of the base's files: those that lie there already in their order, then new ones by name.

        What inserted modules add lies in the last file.
        """
        stored = list(self.base.tensors.header(file).entries)
        new = [name for name in self.home.tensors if self.home.tensors.file_of(name) == file]
        added = list(self.added) if file == self.base.tensors.files[-1] else []
        return [*stored, *sorted({*new, *added} - set(stored))]

    @property
    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted({*self.home.tensors, *self.added})

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
    home = lowering.home
    edited = EditedTensors(lowering.folds, home.tensors, lowering.writes)
    rewritten = _rewritten(base, home)
    if not lowering.inserts:
        return CheckpointContents(base, home, edited, home.config, rewritten=rewritten)
    model = inserted_model(home, lowering.inserts, dtype=lowering.dtype)
    return CheckpointContents(base, home, edited, model.config, model.tensors, {model.code_file: model.code}, rewritten)


def _rewritten(base: ModelFolder, home: ModelFolder) -> dict[str, str]:
    """The tokenizer's config with the entries that keep the tokenizer the same under another model type."""
    changes = changed_tokenizer_entries(base, home)
    if not changes:
        return {}
    config = json.loads((base.path / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    return {TOKENIZER_CONFIG: json.dumps({**config, **changes}, indent=2, ensure_ascii=False) + "\n"}
