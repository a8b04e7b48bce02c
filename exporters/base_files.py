"""What of a base folder goes into a result beside its weights, and what does not, with the reason."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from alignez_bake.exporters.output_folder import OURS
from alignez_bake.exporters.protocol import SkippedFile

from alignez_bake.safetensors_io.folder_layout import INDEX_FILE, check_inside

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

# Other copies of the unedited weights: a loader that prefers one would run the base in silence.
_WEIGHT_SUFFIXES: Final = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".onnx_data",
    ".onnx.data",
    ".onnx_edits_data",
)
# transformers, where peft is installed, takes the base that it names instead of the weights beside it.
_ADAPTER_CONFIG: Final = "adapter_config.json"
_FOLDERS_LEFT: Final = {".git": "version control", ".cache": "a download cache", OURS: "the record of an earlier bake"}
DTYPE_KEYS: Final = ("dtype", "torch_dtype")


class BaseFiles(NamedTuple):
    """The files of a base beside its weights.

    Attributes:
        copied: for each file that a result holds too its name there.
        skipped: what a result leaves out, with the reason.
    """

    copied: dict[str, str]
    skipped: tuple[SkippedFile, ...]


def base_files(base: Path, weight_files: Collection[str]) -> BaseFiles:
    """What becomes of each file of a base: its README.md becomes `alignez/base_README.md`.

    Args:
        base: the base folder.
        weight_files: names that the exporter writes itself.

    Raises:
        BadInputError: a symlink that leaves the folder.
    """
    copied: dict[str, str] = {}
    skipped: list[SkippedFile] = []
    _sort_folder(base, base, frozenset(weight_files) | {INDEX_FILE}, copied, skipped)
    return BaseFiles(copied, tuple(skipped))


def copy_base_files(base: Path, out: Path, weight_files: Collection[str]) -> tuple[SkippedFile, ...]:
    """Copy config, tokenizer and the base's other files.

    Args:
        base: the base folder.
        out: the folder that is being written, with an `alignez` subfolder.
        weight_files: names that the exporter writes itself.

    Returns:
        What was left out, with the reason.

    Raises:
        BadInputError: a symlink that leaves the folder.
    """
    files = base_files(base, weight_files)
    for name, target_name in files.copied.items():
        target = out / target_name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, target)
    return files.skipped


def code_files(folder: Path) -> list[str]:
    """Every Python file of a model folder, which a loader that trusts its code may run."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def _sort_folder(
    base: Path, folder: Path, own: frozenset[str], copied: dict[str, str], skipped: list[SkippedFile]
) -> None:
    for source in sorted(folder.iterdir()):
        name = source.relative_to(base).as_posix()
        if name in own:
            continue
        if name in _FOLDERS_LEFT:
            skipped.append(SkippedFile(f"{name}/", _FOLDERS_LEFT[name]))
        elif name == _ADAPTER_CONFIG:
            skipped.append(SkippedFile(name, "it makes loaders take another base than the edited one"))
        elif source.name.endswith(_WEIGHT_SUFFIXES):
            skipped.append(SkippedFile(name, "it holds weights that were not edited"))
        else:
            check_inside(base, name)
            if source.is_dir():
                _sort_folder(base, source, own, copied, skipped)
            else:
                copied[name] = f"{OURS}/base_README.md" if name == "README.md" else name


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json with another weight dtype, such as `float32`; everything else as it was."""
    present = [key for key in DTYPE_KEYS if key in config] or [DTYPE_KEYS[0]]
    return {**config, **dict.fromkeys(present, dtype)}
