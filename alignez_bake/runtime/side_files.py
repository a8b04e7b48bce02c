"""The small files beside a graph: read whole, within bounds, and from where the graph itself lies."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.inside import inside_folders
from alignez_bake.safetensors_io.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MIB: Final = 1 << 20
MOST_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "tokenizer.json": 256 * _MIB,  # vocabularies of 262144 tokens have files of about 35 MiB
        "tokenizer_config.json": 16 * _MIB,
        "special_tokens_map.json": 16 * _MIB,
        "config.json": 16 * _MIB,
        "generation_config.json": 16 * _MIB,
        "chat_template.jinja": _MIB,
    }
)
"""The files that are read, and how large each may be."""


@dataclass(frozen=True)
class SideFiles:
    """Where a model's tokenizer and configs lie.

    Attributes:
        folder: with the files by their usual names.
        graph: the `.onnx` file; a link of the folder may lead to where its real file lies, as in the hub's cache,
            and nowhere else.
    """

    folder: Path
    graph: Path

    def data(self, name: str) -> bytes | None:
        """A file's bytes, None where there is none.

        Args:
            name: one of `MOST_BYTES`.

        Raises:
            BadInputError: too large, unreadable, no regular file, or a link out of the folder.
        """
        path = self.folder / name
        if not path.is_symlink() and not path.exists():
            return None
        real = inside_folders(path, (self.folder.resolve(), self.graph.resolve().parent), str(path))
        try:
            with real.open("rb") as file:
                data = file.read(MOST_BYTES[name] + 1)
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from error
        if len(data) > MOST_BYTES[name]:
            raise BadInputError(f"{path} has more than {MOST_BYTES[name]} bytes, which no model needs: copy it again")
        return data

    def text(self, name: str) -> str | None:
        """A UTF-8 file's text, None where there is none.

        Raises:
            BadInputError: as `data`, or not UTF-8.
        """
        data = self.data(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise BadInputError(f"{self.folder / name} is not UTF-8: copy it again") from error

    def settings(self, name: str) -> dict[str, object]:
        """A JSON file's object, one without entries where there is no file.

        Raises:
            BadInputError: as `data`, or not one strict JSON object.
        """
        data = self.data(name)
        return {} if data is None else parse_object(data, str(self.folder / name))
