"""Arrays into whose memory nobody in this process can write, so that records may share them instead of copying."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def immutable(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """The array itself if its memory is immutable, contiguous and aligned; else a copy in C order that is.

    The copy lies in `bytes`. A copy that is only marked read-only would not do: its owner, which is what everybody
    holds who got it, can mark it writeable again, so it could not be told from one that will change.
    """
    if array.flags.c_contiguous and array.flags.aligned and is_immutable(array):
        return array
    return np.frombuffer(array.tobytes(order="C"), dtype=array.dtype).reshape(array.shape)


def is_immutable(array: NDArray[Any]) -> bool:
    """Whether an array's memory belongs to bytes or to a mapping that was opened for reading."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return isinstance(owner, bytes) or (isinstance(owner, mmap.mmap) and memoryview(owner).readonly)
