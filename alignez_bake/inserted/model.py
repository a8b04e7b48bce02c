"""What makes a base an inserted checkpoint: its config, its code, and the parameters that are added to its files.

Nothing is run here, and neither torch nor transformers is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.inserted.code import CODE_FILE, classes_for, generate_code, own_model_type
from alignez_bake.inserted.place import find_place
from alignez_bake.safetensors_io.names import resolve_key
from alignez_bake.safetensors_io.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import Group
    from alignez_bake.inserted.place import Place
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Site

    FloatArray = NDArray[np.floating[Any]]

EDITS_KEY = "alignez_edits"
_TENSOR_NAMES = ("left", "right", "offset", "bias")
# Rounding to float32 loses 6e-8 of an array's norm; more than this is no rounding any more.
_STORED_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SiteInsert:
    """The edits of one site that an inserted module carries.

    Attributes:
        site: whose output is edited.
        groups: of `EditPlan.groups_at(site)`.
    """

    site: Site
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class InsertedModel:
    """What is written beside the base's files and tensors.

    Attributes:
        code: text of the Python file.
        config: config.json.
        tensors: the added parameters by name, float32 or, where the base's weights are, float64.
        code_file: the Python file's name.
    """

    code: str
    config: dict[str, Any]
    tensors: dict[str, FloatArray]
    code_file: str = CODE_FILE


def inserted_model(base: ModelFolder, inserts: Sequence[SiteInsert], *, dtype: str | None = None) -> InsertedModel:
    """Code, config and parameters of a base with edits inserted.

    Args:
        base: the model; its config and headers are read.
        inserts: one for each site, whose edits have the widths of the site.
        dtype: file dtype that the weights will have, such as "F64", if it is not the base's.

    Raises:
        BadInputError: a base that is remote code itself, whose classes are not described, or whose
            tokenizer_config.json is no JSON object; a site that it does not have, edits that no inserted module
            can carry there, or values that its parameters cannot hold.
    """
    model_type = base.architecture.model_type
    classes = classes_for(model_type)
    if "auto_map" in base.config:
        raise BadInputError(
            f"{base.path} is a model with code of its own (auto_map in config.json), to which no modules can be "
            "added: use edits that fold"
        )
    by_module: dict[str, list[tuple[Place, SiteInsert]]] = {}
    for insert in inserts:
        place = find_place(base, insert.site, insert.groups)
        if classes.flattening_layers and insert.site.kind == "mlp_write" and _edits_the_last(insert.groups):
            # No edits for the layer itself, but as an edited module it tells its maps where a sequence ends.
            by_module.setdefault(base.architecture.layer_path(insert.site.layer or 0), [])
        by_module.setdefault(place.module, []).append((place, insert))
        _check_factors(insert)
    code_module = CODE_FILE.removesuffix(".py")
    config = {
        **base.config,
        "model_type": own_model_type(model_type),
        "architectures": [classes.own_model],
        "auto_map": {
            "AutoConfig": f"{code_module}.{classes.own_config}",
            "AutoModelForCausalLM": f"{code_module}.{classes.own_model}",
        },
        EDITS_KEY: [_module_entry(module, parts) for module, parts in by_module.items()],
    }
    if not _names_its_tokenizer(base):
        config["tokenizer_class"] = classes.tokenizer
    prefix, stored_dtype = _file_prefix_and_dtype(base)
    if dtype is not None:
        stored_dtype = np.float64 if dtype == "F64" else np.float32
    tensors = {}
    for module, parts in by_module.items():
        edits = [edit for _, insert in parts for group in insert.groups for edit in group.edits]
        for index, edit in enumerate(edits):
            for name, array in _arrays(edit).items():
                key = f"{module.removeprefix(prefix)}.{EDITS_KEY}.{index}.{name}"
                tensors[key] = _stored(array, stored_dtype, f"{edit.name}: {name}")
    return InsertedModel(generate_code(model_type), config, tensors)


def _check_factors(insert: SiteInsert) -> None:
    """Refuse factors that float32 arithmetic turns into infinity."""
    for group in insert.groups:
        for edit in group.edits:
            factor = max(abs(group.weight), abs(edit.strength), abs(group.weight * edit.strength))
            if factor > float(np.finfo(np.float32).max):
                raise BadInputError(
                    f"edit at {edit.name}: strength {edit.strength:g} with dial {group.weight:g} is above what float32 "
                    "holds: use smaller ones"
                )


def _stored(array: FloatArray, dtype: type[np.floating[Any]], what: str) -> FloatArray:
    """An edit's array as a parameter, refused where the dtype holds it no better than as something else.

    Values that overflow would be infinite, and ones below the smallest normal number lose their digits: both change
    the edit, whose product may be of quite an ordinary size.
    """
    with np.errstate(over="ignore", under="ignore"):
        stored = array.astype(dtype)
        unit = float(np.abs(array).max(initial=0.0)) or 1.0
        lost = np.linalg.norm((stored - array) / unit) / max(float(np.linalg.norm(array / unit)), 1.0)
    if not np.isfinite(stored).all() or lost > _STORED_TOLERANCE:
        raise BadInputError(
            f"edit at {what} holds values up to {unit:.3g}, which {np.dtype(dtype)} parameters cannot hold: scale left "
            "and right so that both are of ordinary size"
        )
    return stored


def _names_its_tokenizer(base: ModelFolder) -> bool:
    """Whether config.json or tokenizer_config.json names a tokenizer class.

    Where neither does (released gpt2), transformers goes by the model type, and would know none for ours.
    """
    if base.config.get("tokenizer_class"):
        return True
    file = base.path / "tokenizer_config.json"
    entries = parse_object(file.read_bytes(), str(file)) if file.is_file() else {}
    return bool(entries.get("tokenizer_class") or entries.get("auto_map"))


def _edits_the_last(groups: Sequence[Group]) -> bool:
    return any(edit.positions == "last" for group in groups for edit in group.edits)


def _module_entry(module: str, parts: Sequence[tuple[Place, SiteInsert]]) -> dict[str, Any]:
    """One module's entry of config.json. Its edits are named by number, as their tensors are."""
    numbers = count()
    return {
        "module": module,
        "parts": [
            {
                "columns": None if place.columns is None else [place.columns.start, place.columns.stop],
                "groups": [
                    {
                        "objective": group.objective,
                        "weight": group.weight,
                        "edits": [_edit_entry(str(next(numbers)), edit) for edit in group.edits],
                    }
                    for group in insert.groups
                ],
            }
            for place, insert in parts
        ],
    }


def _edit_entry(name: str, edit: Edit) -> dict[str, Any]:
    return {
        "name": name,
        "reads": edit.reads,
        "gate": edit.gate,
        "positions": edit.positions,
        "strength": edit.strength,
        "shapes": {tensor: list(array.shape) for tensor, array in _arrays(edit).items()},
    }


def _arrays(edit: Edit) -> dict[str, FloatArray]:
    arrays = {name: getattr(edit, name) for name in _TENSOR_NAMES}
    return {name: array for name, array in arrays.items() if array is not None}


def _file_prefix_and_dtype(base: ModelFolder) -> tuple[str, type[np.floating[Any]]]:
    """What the files leave out of parameters' names (released gpt2: "transformer."), and the dtype of what is added.

    transformers 4 decides once a folder whether names lack the prefix, so that what is added must do as the base.
    """
    architecture = base.architecture
    name = f"{architecture.embed}.weight"
    key = resolve_key(base.tensors, name, architecture.base_model_prefix)
    dtype = np.float64 if base.tensors.entry(key).dtype == "F64" else np.float32
    return name.removesuffix(key), dtype
