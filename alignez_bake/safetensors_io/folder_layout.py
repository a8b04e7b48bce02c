"""Which files of a folder hold the model's tensors, and why a folder holds no model that we read."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, Final, cast

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.header import MAX_HEADER_BYTES
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from pathlib import Path

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = MAX_HEADER_BYTES
_PICKLE_SUFFIXES: Final = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl")


def read_index(path: Path) -> dict[str, Any]:
    """Parse and check `model.safetensors.index.json`.

    Returns:
        The JSON object; `weight_map` is a non-empty map from tensor names to plain file names.

    Raises:
        BadInputError: unreadable, not such an index, or a file name that leaves the folder.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a named pipe would wait for ever
            raise BadInputError(f"{path} is not a regular file: an index is expected here")
        if status.st_size > MAX_INDEX_BYTES:
            raise BadInputError(f"{path} has {status.st_size} bytes: an index may have at most {MAX_INDEX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error}): check its permissions") from error
    if data.startswith(b"version https://git-lfs"):
        raise BadInputError(f"{path} is a git-LFS pointer: run `git lfs pull`, or download the file again")
    index = parse_object(data, str(path))
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{path}: weight_map is {shown(weight_map)}: it must map at least one tensor to its file")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain_name(file):
            raise BadInputError(
                f"{path}: tensor {shown(name)} lies in {shown(file)}: it must be the plain name of a .safetensors file "
                "in the same folder, without '/' or '..'"
            )
    return index


def _is_plain_name(file: str) -> bool:
    """Whether a name stays in its folder on every system: no separators, no drive, no control characters."""
    return file.endswith(".safetensors") and file.isprintable() and not any(c in file for c in "/\\:")


def model_files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """The names of the files that hold the model's tensors.

    As transformers does it: `model.safetensors` wins where an index lies beside it.

    Returns:
        File names (one, or the shards in order of name) and the index's weight_map (None for a single file).

    Raises:
        BadInputError: no folder, or no model in it that we read; the message says what was found.
    """
    if not folder.exists():
        raise BadInputError(f"{folder}: no such folder: check the path, or download the model")
    if not folder.is_dir():
        raise BadInputError(f"{folder} is a file: give the model's folder, the one with config.json")
    single, index_path = folder / SINGLE_FILE, folder / INDEX_FILE
    # A dangling link counts as present, so that it is named instead of passed over.
    if single.exists() or single.is_symlink():
        check_inside(folder, SINGLE_FILE)
        return [SINGLE_FILE], None
    if index_path.exists() or index_path.is_symlink():
        check_inside(folder, INDEX_FILE)
        weight_map = cast("dict[str, str]", read_index(index_path)["weight_map"])
        files = sorted(set(weight_map.values()))
        for file in files:
            check_inside(folder, file)
        return files, weight_map
    raise BadInputError(_why_not_a_model(folder))


def check_inside(folder: Path, file: str) -> None:
    """Refuse a file that is missing, or a symlink that leaves the folder.

    The hub's cache is the one exception: `snapshots/<revision>/.../file` may link to a file directly in the
    `blobs` folder beside `snapshots`.

    Raises:
        BadInputError: absent, or a symlink elsewhere.
    """
    path = folder / file
    if not path.exists():
        what = "is a symlink to nothing" if path.is_symlink() else "is missing"
        raise BadInputError(f"{path} {what}: the download is incomplete; download it again")
    target, real_folder = path.resolve(), folder.resolve()
    if target.is_relative_to(real_folder):
        return
    for parent in real_folder.parents:
        if parent.name == "snapshots" and target.parent == parent.parent / "blobs":
            return
    raise BadInputError(
        f"{path} is a symlink to {shown(str(target))}, outside of the model's folder: copy or hard-link the file into "
        "the folder"
    )


def _why_not_a_model(folder: Path) -> str:
    """Why a folder is not a model, from what lies in it."""
    found = sorted(path.name for path in folder.iterdir())
    safetensors = [name for name in found if name.endswith(".safetensors")]
    pickles = [name for name in found if name.endswith(_PICKLE_SUFFIXES)]
    expected = f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}"
    if "adapter_config.json" in found or "adapter_model.safetensors" in found:
        return (
            f"{expected}, but an adapter ({_listed(safetensors) or 'adapter_config.json'}): give its base model, or "
            "merge the adapter into the base and save that"
        )
    if safetensors:
        return (
            f"{expected}; found {_listed(safetensors)}, which transformers does not load as a model: give a folder in "
            f"the transformers layout, or rename a lone file to {SINGLE_FILE} if it is the whole model"
        )
    if pickles:
        return (
            f"{expected}, but pickled weights ({_listed(pickles)}), which are not read, because unpickling runs "
            "code: load the model with a tool that you trust and save it as safetensors (save_pretrained does); or use "
            "--allow-pickle of `bake` and `verify`: torch's weights-only loader refuses what is no tensor, but a flaw "
            "in it could let a hostile file run code"
        )
    return f"{expected}; found {_listed(found) or 'nothing'}: give the model's folder"


def _listed(names: list[str]) -> str:
    """At most eight names, for a message."""
    return ", ".join(ascii(name)[1:-1] for name in names[:8]) + (f" and {len(names) - 8} more" if names[8:] else "")
