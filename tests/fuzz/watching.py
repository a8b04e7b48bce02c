"""What a reader does beside returning: the files it opens, the bytes it asks for, the memory it takes."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

# A byte of JSON costs up to fifty of memory: "{}," is a dict of 64 bytes, its place in a list and the list of its
# pairs, a short key is an object of 50 beside its place in a table, and a message holds a value's text once more.
MEMORY_PER_BYTE = 64
# For modules, messages and buffers, whatever the file.
MEMORY_BESIDE = 2_000_000


@dataclass
class Watch:
    """What was seen.

    Attributes:
        opened: the real path of each file that was opened.
        beyond: requests and maps that leave their file, in words.
        peak: bytes of Python's and numpy's memory, above what there was before.
    """

    opened: list[Path] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    peak: int = 0

    def check(self, size: int, allowed: tuple[Path, ...]) -> None:
        """Assert that only `allowed` files or folders were read, inside of files, in memory bounded by `size`."""
        roots = [path.resolve() for path in allowed]
        strangers = [str(path) for path in self.opened if not any(path.is_relative_to(root) for root in roots)]
        assert not strangers, strangers
        assert not self.beyond
        bound = MEMORY_PER_BYTE * size + MEMORY_BESIDE
        assert self.peak <= bound, f"{self.peak} bytes of memory for {size} of files: at most {bound}"


class Hooks:
    """Python's audit events of opening and mapping files. A hook cannot be taken away, so there is one for all."""

    def __init__(self) -> None:
        self.watch: Watch | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.watch is None:
            return
        if event == "open" and not isinstance(arguments[0], int):
            self.watch.opened.append(Path(os.path.realpath(os.fsdecode(arguments[0]))))
        elif event == "mmap.__new__":
            descriptor, length, _, offset = arguments
            if descriptor >= 0 and offset + length > os.fstat(descriptor).st_size:
                self.watch.beyond.append(f"map of {length} bytes at {offset}")

    @contextmanager
    def watching(self):
        """A `Watch` of what happens within."""
        watch = Watch()

        class Recorded(io.FileIO):
            """A file that checks what it is asked for."""

            def readinto(self, buffer):
                room, size = len(buffer), os.fstat(self.fileno()).st_size
                # A buffered file reads ahead by one buffer; a request for more must have its bytes.
                if room > io.DEFAULT_BUFFER_SIZE and self.tell() + room > size + io.DEFAULT_BUFFER_SIZE:
                    watch.beyond.append(f"read of {room} bytes at {self.tell()} of {size}")
                if self.tell() > size:
                    watch.beyond.append(f"read at {self.tell()} of {size}")
                return super().readinto(buffer)

        def recorded_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
            assert mode in {"r", "rb"}, f"a reader opened {file} with mode {mode}"
            raw = Recorded(file)
            if mode == "rb":
                return raw if buffering == 0 else io.BufferedReader(raw)
            return io.TextIOWrapper(io.BufferedReader(raw), encoding, errors, newline)

        tracemalloc.start()
        try:
            with mock.patch.object(io, "open", recorded_open):
                self.watch = watch
                yield watch
        finally:
            self.watch = None
            watch.peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
