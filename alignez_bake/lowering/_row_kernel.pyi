from typing import Any

from numpy.typing import NDArray

def available() -> bool: ...
def edit_rows(
    base: NDArray[Any],
    left: NDArray[Any],
    right: NDArray[Any],
    out: NDArray[Any],
    rows: int,
    columns: int,
    inner: int,
    kind: int,
    out_kind: int,
    /,
) -> tuple[bool, float, float, float, float]: ...
def add_product(
    stored: NDArray[Any],
    right: NDArray[Any],
    total: NDArray[Any],
    rows: int,
    columns: int,
    inner: int,
    block: int,
    kind: int,
    /,
) -> bool: ...
