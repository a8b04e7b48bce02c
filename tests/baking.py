"""What tests of bakes share: plans for a base, mutated folders, and folders as values."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from alignez_bake.exporters.checkpoint import CheckpointExporter

from alignez_bake.cli.main import build_app
from alignez_bake.cli.shell import run
from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.file_access import read_tensor
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.site import Site
from tests.random_edits import edit_for_slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.certificate.tensors import TensorsCertificate
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder


def plan_for(
    base: ModelFolder | Path, kinds: Sequence[str] = ("attn_write",), *, reads: str = "output", **settings: Any
) -> EditPlan:
    """One random edit at every layer's site of each kind, made for this base."""
    folder = base if not hasattr(base, "joinpath") else open_model_folder(base)
    edits = [
        edit_for_slot(find_slot(folder, Site(kind, layer)), reads=reads, **settings)
        for kind in kinds
        for layer in range(folder.num_layers)
    ]
    return EditPlan(tuple(edits), base=folder.fingerprint)


def lowered(base: ModelFolder, plan: EditPlan) -> Lowering:
    """The plan's decisions for a checkpoint."""
    return lower(plan, base, CheckpointExporter())


def certify(base: Path, result: Path, plan: EditPlan) -> TensorsCertificate:
    """Level `tensors` of a result folder."""
    from alignez_bake.certificate.tensors import certify_tensors

    folder = open_model_folder(base)
    return certify_tensors(folder, open_model_folder(result), lowered(folder, plan))


def replace_tensors(folder: Path, change: Callable[[str, NDArray[Any]], NDArray[Any] | None]) -> None:
    """Rewrite the tensors of a folder for which `change(name, values)` is not None."""
    for file in open_model_folder(folder).tensors.files:
        replace_in_file(folder / file, change)


def replace_in_file(file: Path, change: Callable[[str, NDArray[Any]], NDArray[Any] | None]) -> None:
    """The same in one file. Header and all other bytes stay; a hard link to the file keeps what it was."""
    header, data = read_header(file), bytearray(file.read_bytes())
    for entry in header.entries.values():
        old = read_tensor(header, entry)
        if (new := change(entry.name, old)) is not None:
            assert (new.dtype, new.shape) == (old.dtype, old.shape)
            data[header.data_offset + entry.begin : header.data_offset + entry.end] = new.tobytes()
    changed = file.with_name(f"{file.name}.changed")
    changed.write_bytes(data)
    changed.replace(file)


def rewrite_names(folder: Path, change: Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]) -> None:
    """Write model.safetensors anew with what `change` makes of all its tensors."""
    tensors = open_model_folder(folder).tensors
    values = {name: tensors.read(name) for name in tensors.names()}
    write_tensors(folder / "model.safetensors", change(values), {"format": "pt"})


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones included, with its bytes; None for folders and links to nothing."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def nothing_written(*folders: Path) -> Iterator[None]:
    """Inside this context nothing below the folders may change, hidden files included."""
    before = [contents(folder) for folder in folders]
    yield
    for folder, was in zip(folders, before, strict=True):
        now = contents(folder)
        assert sorted(now) == sorted(was)
        assert now == was


def command(*arguments: object) -> int:
    """Run the command line in this process; returns its exit status."""
    return run(build_app(), [str(argument) for argument in arguments])


def flipped(values: NDArray[Any]) -> NDArray[Any]:
    """The same values but for the lowest bit of one."""
    changed = values.copy()
    bits = changed.reshape(-1).view(np.uint8)
    bits[bits.size // 2] ^= 1
    return changed
