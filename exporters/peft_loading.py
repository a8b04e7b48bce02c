"""An adapter as its users load it: the base by transformers, the adapter by PEFT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignez_bake.exporters.peft_files import WEIGHTS_FILE

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.loading import LoadedModel, load_model, quiet_transformers
from alignez_bake.safetensors_io.header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.model_folder import ModelFolder


def load_adapted(base: ModelFolder, out: Path, *, device: str, trust_remote_code: bool) -> LoadedModel:
    """The base model with the adapter beside its maps; its module tree has the base's paths.

    Args:
        base: the base model.
        out: the adapter's folder.
        device: where it shall run.
        trust_remote_code: run the model code that the base brings along.

    Raises:
        BadInputError: PEFT is not installed or refuses the adapter, tensors of the adapter that found no place or are
            missing; as `load_model`.
    """
    peft = _peft()
    loaded = load_model(base, device=device, trust_remote_code=trust_remote_code)
    try:
        with quiet_transformers():
            adapted = peft.PeftModel.from_pretrained(loaded.model, str(out), is_trainable=False)
            placed = set(peft.get_peft_model_state_dict(adapted))
    except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
        raise BadInputError(f"PEFT {peft.__version__} does not load the adapter {out}: {error}") from error
    # PEFT warns of missing tensors and says nothing of foreign ones.
    stored = set(read_header(out / WEIGHTS_FILE).entries)
    if placed != stored:
        example = min(placed ^ stored)
        raise BadInputError(
            f"PEFT {peft.__version__} loads the adapter {out} in part: {len(placed - stored)} tensor(s) are missing "
            f"and {len(stored - placed)} found no place, such as {example}"
        )
    adapted.eval().requires_grad_(requires_grad=False)
    return LoadedModel(adapted.get_base_model(), loaded.unused_keys)


def _peft() -> Any:  # noqa: ANN401 - an optional module without types
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise BadInputError(
            "running an adapter needs PEFT, which is not installed: pip install 'alignez-bake[adapter]'"
        ) from error
