"""What of an unfinished result is safe on the disk, so that the same command goes on after a kill.

A file of JSON lines beside the result's other records. The first says what is being made; each other one stands for
bytes that were synced before it was written. A line that was cut by the kill is as good as none.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.delivery import DeliverySums
from alignez_bake.lowering.rounding import Rounding
from alignez_bake.streaming.written import Way, WrittenFile, WrittenTensor, tensor_from_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

JOURNAL_FILE: Final = "journal.jsonl"
_MAX_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Checkpoint:
    """A place in an unfinished file up to which all is on the disk.

    Attributes:
        file: its name.
        segment: number of the first segment that is not.
        offset: of that segment in the file, in bytes.
        hash: of the bytes before it, hexadecimal.
        base_hash: of the base's bytes that passed until then; None where they are hashed apart.
        tensors: the edited and new tensors before it.
    """

    file: str
    segment: int
    offset: int
    hash: str
    base_hash: str | None
    tensors: tuple[WrittenTensor, ...]


class Journal:
    """What is done of a result.

    Attributes:
        path: of the file.
        done: the finished weight files by name.
        checkpoints: the last safe place in each unfinished one.
    """

    def __init__(self, path: Path | None) -> None:
        """Go on with a journal.

        Args:
            path: of the file, as `begin_journal` or a killed run left it; None: nothing is kept, and nothing can be
                gone on with.

        Raises:
            BadInputError: the journal is damaged.
        """
        self.path = path
        self.done: dict[str, WrittenFile] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        if path is None:
            return
        lines = journal_lines(path)
        for noted in _noted(path, lines):
            if isinstance(noted, Checkpoint):
                self.checkpoints[noted.file] = noted
            else:
                self.done[noted.name] = noted
        # The rest of a cut line would run into the next one, so what was read is written anew.
        _write(path, lines)

    def reached(self, checkpoint: Checkpoint) -> None:
        """Note a place; everything before it must be synced. May be called by any one thread at a time."""
        self._append(asdict(checkpoint))

    def finished(self, file: WrittenFile) -> None:
        """Note a finished file, which must be synced and have its name."""
        self._append({"done": file.to_json()})
        self.done[file.name] = file

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        with self.path.open("ab") as file:
            file.write(_encoded(line))
            file.flush()
            os.fsync(file.fileno())


def begin_journal(path: Path, made: Mapping[str, Any]) -> None:
    """Begin a journal.

    Args:
        path: of the file.
        made: what is being made, as JSON values.
    """
    _write(path, [made])


def journal_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; none where there is none.

    Raises:
        BadInputError: a file that is no journal.
    """
    if not path.is_file() or path.is_symlink():
        return []
    if path.stat().st_size > _MAX_BYTES:
        raise BadInputError(f"{path} has {path.stat().st_size} bytes, too many for a journal: remove {path.parents[1]}")
    *whole, _cut = path.read_bytes().split(b"\n")
    try:
        lines = [json.loads(line) for line in whole]
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not all(isinstance(line, dict) for line in lines):
        raise _damaged(path)
    return lines


def files_to_keep(path: Path, lines: Sequence[dict[str, Any]]) -> set[str]:
    """Names of the files, whole and not, that a journal's lines say something of.

    Raises:
        BadInputError: the journal is damaged.
    """
    return {partial_name(noted.file) if isinstance(noted, Checkpoint) else noted.name for noted in _noted(path, lines)}


def partial_name(name: str) -> str:
    """Of a weight file that is not whole: one that no loader takes for weights."""
    return f"{name}.partial"


def check_same(path: Path, begun: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Refuse to go on with something else than was begun.

    Raises:
        BadInputError: the message says in what the two differ.
    """
    differing = [key for key in sorted(made) if key not in begun or begun[key] != made[key]]
    if differing or begun.keys() - made.keys():
        raise BadInputError(
            f"{path.parents[1]} is an unfinished result of another bake (other {', '.join(differing) or 'kind'}): run "
            "that command again to finish it, remove the folder, or choose another --out"
        )


def _noted(path: Path, lines: Sequence[dict[str, Any]]) -> Iterator[Checkpoint | WrittenFile]:
    """What the lines after the first say; each value is of the type that is written."""
    for line in lines[1:]:
        try:
            noted = WrittenFile.from_json(line["done"]) if "done" in line else _checkpoint(line)
        except (KeyError, TypeError, AttributeError):
            raise _damaged(path) from None
        if not (_is_of_a_file(noted) if isinstance(noted, WrittenFile) else _is_a_place(noted)):
            raise _damaged(path)
        yield noted


def _checkpoint(line: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(**{**line, "tensors": tuple(tensor_from_json(tensor) for tensor in line["tensors"])})


def _is_of_a_file(noted: WrittenFile) -> bool:
    return (
        _is_name(noted.name)
        and noted.way in get_args(Way)
        and type(noted.size) is int
        and _are_texts(noted.hash, noted.base_hash)
        and all(_is_tensor(tensor) for tensor in noted.tensors)
    )


def _is_a_place(noted: Checkpoint) -> bool:
    return (
        _is_name(noted.file)
        and type(noted.segment) is int
        and type(noted.offset) is int
        and _are_texts(noted.hash, *_given(noted.base_hash))
        and all(_is_tensor(tensor) for tensor in noted.tensors)
    )


def _is_tensor(tensor: WrittenTensor) -> bool:
    sums = tensor.sums or DeliverySums()
    return (
        _are_texts(tensor.name, tensor.hash, *_given(tensor.base_hash))
        and tensor.rounding in get_args(Rounding)
        and all(type(value) in (int, float) for value in (sums.aligned, sums.change, sums.residual, sums.base))
        and (sums.exponent is None or type(sums.exponent) is int)
    )


def _is_name(value: object) -> bool:
    """Whether it names a file of the folder itself."""
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value and "\0" not in value


def _are_texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _given(value: object) -> tuple[object, ...]:
    return () if value is None else (value,)


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a journal of these lines, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        for line in lines:
            file.write(_encoded(line))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _damaged(path: Path) -> BadInputError:
    return BadInputError(f"{path} is damaged: remove {path.parents[1]}, and start anew")


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":"), sort_keys=True).encode("ascii") + b"\n"
