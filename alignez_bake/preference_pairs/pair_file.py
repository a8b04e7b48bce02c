"""Reading and writing files of pairs; what their lines are is told in `records`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.preference_pairs.records import (
    HEADER_KEY,
    PairHeader,
    PairRecord,
    PairSet,
    parse_header,
    parse_record,
)
from alignez_bake.safetensors_io.strict_json import parse_object

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.preference_pairs.records import PairOrigin

MAX_FILE_BYTES = 512 * 1024 * 1024


def read_pairs(path: Path, *, default_objective: str | None = None, origin: PairOrigin | None = None) -> PairSet:
    """Read pairs that this tool made, or that somebody wrote by hand.

    Args:
        path: JSON lines, with a header or without.
        default_objective: of lines that name none; None: every line must name its own.
        origin: the model and tokenizer that the pairs are for; None: any.

    Returns:
        The records in the order of the file. Blank lines are dropped.

    Raises:
        BadInputError: no such file, too large, not UTF-8, no record in it, a line that does not fit (the message
            has its number), or a header of another model or tokenizer than `origin`. Pairs without a header fit
            any model.
    """
    if not path.is_file():
        raise BadInputError(f"no such file of pairs: {path}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadInputError(f"{path} has {path.stat().st_size} bytes: a file of pairs has at most {MAX_FILE_BYTES}")
    header: PairHeader | None = None
    records: list[PairRecord] = []
    first = True
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        entry = parse_object(line, place)
        if first and HEADER_KEY in entry:
            header = parse_header(entry, place)
        else:
            records.append(parse_record(entry, place, default_objective))
        first = False
    if not records:
        raise BadInputError(f"{path} holds no pairs")
    if header is not None and origin is not None:
        check_origin(header.origin, origin, path)
    return PairSet(tuple(records), header)


def check_origin(made_by: PairOrigin, wanted: PairOrigin, path: Path) -> None:
    """Refuse pairs of another model: their answers are not what this model would have said.

    Raises:
        BadInputError: another model or tokenizer; the message says which.
    """
    way_out = "make pairs with this model, or remove the file's first line to use them as pairs of your own"
    if made_by.tokenizer_sha256 != wanted.tokenizer_sha256:
        raise BadInputError(f"{path} holds pairs of another model's tokens (another tokenizer): {way_out}")
    if made_by.model != wanted.model:
        raise BadInputError(
            f"{path} holds pairs of another model ({made_by.model.model_type}, weights "
            f"{made_by.model.tensors_sha256[:12]}; this one is {wanted.model.model_type}, "
            f"{wanted.model.tensors_sha256[:12]}): {way_out}"
        )


def write_pairs(path: Path, pairs: PairSet) -> None:
    """Write the header, if there is one, and all records; the same pairs give the same bytes.

    Raises:
        BadInputError: the file cannot be written.
    """
    lines = [pairs.header.line()] if pairs.header is not None else []
    lines += [record.line() for record in pairs.records]
    try:
        path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8"))
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror or error}") from error
