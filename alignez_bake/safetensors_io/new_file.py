"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name `target` only when the block ends without an error.

    Until then it lies beside it as `<name>.partial`, a name that no loader takes for weights. It is synced to the
    disk before it is renamed. A leftover of a crash is replaced; so is an existing `target`, even if it is the
    very file (or a link to it) that is being read.

    Raises:
        BadInputError: it cannot be written: no such folder, no permission, disk full.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadInputError(
            f"{target} cannot be written ({error.strerror or error}): check folder, permissions and free space"
        ) from error
