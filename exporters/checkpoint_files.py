"""The weight files of a checkpoint, as plans for the stream that writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignez_bake.exporters.dtype import FILE_DTYPES

from alignez_bake.safetensors_io.dtypes import file_dtype_of, is_plain_float
from alignez_bake.streaming.edited_tensor import EditedTensor
from alignez_bake.streaming.file_plan import FilePlan, plan_file
from alignez_bake.streaming.segments import CastTensor, CopiedTensor, NewTensor

if TYPE_CHECKING:
    from alignez_bake.exporters.checkpoint_contents import CheckpointContents
    from alignez_bake.exporters.dtype import DtypeName
    from numpy.typing import NDArray

    from alignez_bake.lowering.row_kernel import RowBackend
    from alignez_bake.streaming.rounding_choice import AskedRounding
    from alignez_bake.streaming.segments import Segment


def checkpoint_files(
    contents: CheckpointContents, dtype: DtypeName | None, rounding: AskedRounding, backend: RowBackend
) -> tuple[FilePlan, ...]:
    """What goes into each weight file; they are the base's, name by name.

    Args:
        contents: what the checkpoint holds.
        dtype: of all float tensors; the stored dtypes where None.
        rounding: of edited values.
        backend: of rows in float32.
    """
    files = contents.base.tensors.files
    return tuple(
        plan_file(
            file,
            contents.base.tensors.header(file),
            [_segment(contents, file, name, dtype, rounding, backend=backend) for name in contents.names_in(file)],
        )
        for file in files
    )


def _segment(
    contents: CheckpointContents,
    file: str,
    name: str,
    dtype: DtypeName | None,
    rounding: AskedRounding,
    *,
    backend: RowBackend,
) -> Segment:
    tensors, source = contents.home.tensors, contents.base.tensors.header(file).entries.get(name)
    added = contents.added.get(name)
    if added is not None:
        return NewTensor(name, file_dtype_of(added.dtype), added.shape, lambda: added)
    entry = tensors.entry(name)
    new = FILE_DTYPES[dtype] if dtype is not None and is_plain_float(entry.dtype) else entry.dtype
    same = source is not None and source.shape == entry.shape
    if name in contents.edited:
        place = (source.begin, source.end) if source is not None and same else None
        if contents.dtype_of(name) != entry.dtype:  # FP8 codes: what is edited are the numbers that they stand for
            stored_as = contents.edited.base_dtype(name)
            new, place = contents.dtype_of(name), None
        else:
            stored_as = entry.dtype
        return EditedTensor(contents.edited, name, new, entry.shape, stored_as, place, rounding, backend)
    if source is None or not contents.is_copied(name):

        def values() -> NDArray[Any]:
            return tensors.read(name)

        return NewTensor(name, new, entry.shape, values)
    header = contents.base.tensors.header(file)
    return CopiedTensor(header, source) if new == source.dtype else CastTensor(header, source, new)
