"""Text to token ids and back, by tokenizer.json: the `tokenizers` package alone, and the ids of transformers."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from alignez_bake.runtime.side_files import SideFiles
    from alignez_bake.runtime.tokenizer_settings import TokenizerSettings


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer.

    Attributes:
        core: a `tokenizers.Tokenizer`, which has no stubs.
        place: its file, for messages.
    """

    core: Any
    place: str

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Ids of a text.

        Args:
            text: any; special tokens that are written out in it become what they stand for.
            special_tokens: whether the tokenizer adds those that it puts before and behind a text.

        Raises:
            BadInputError: the file is so damaged that it fails at this text.
        """
        with _failures(f"{self.place} cannot encode a text"):
            ids: list[int] = self.core.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; bytes that are no UTF-8 become U+FFFD.

        Raises:
            BadInputError: the file is so damaged that it fails at these ids.
        """
        with _failures(f"{self.place} cannot decode tokens"):
            text: str = self.core.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary."""
        found: int | None = self.core.token_to_id(token)
        return found

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens `<0x00>` to `<0xFF>` of vocabularies that fall back to bytes; none in others."""
        ids = (self.id_of(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(id_ for id_ in ids if id_ is not None)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that `decode` leaves out."""
        return frozenset(id_ for id_, token in self.core.get_added_tokens_decoder().items() if token.special)


def load_tokenizer(files: SideFiles, settings: TokenizerSettings) -> TextTokenizer:
    """The tokenizer that transformers makes of the folder, without truncation and padding.

    Raises:
        BadInputError: the package or tokenizer.json is missing, the file is none, or tokenizer_config.json gives
            tokens other ids than it.
    """
    data = files.data("tokenizer.json")
    path = files.folder / "tokenizer.json"
    if data is None:
        raise BadInputError(
            f"{path} is missing: copy it too, or write it with transformers: "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(OUT)"
        )
    package = _package()
    with _failures(f"{path} is no tokenizer"):
        core = package.Tokenizer.from_buffer(data)
        core.no_truncation()
        core.no_padding()
        _add_tokens(package, core, settings, str(path))
    return TextTokenizer(core, str(path))


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """The package raises nothing narrower than Exception, and where Rust panics a class that is not even one."""
    try:
        yield
    except BadInputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadInputError(f"{what} ({shown(str(error))}): copy tokenizer.json again") from error


def _package() -> ModuleType:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise BadInputError(f"text needs the tokenizers package ({error}): pip install tokenizers") from error


def _add_tokens(package: ModuleType, core: Any, settings: TokenizerSettings, place: str) -> None:  # noqa: ANN401
    """What the config has and tokenizer.json lacks; a token that is there gets the config's flags."""
    named = tuple(settings.named.values())
    core.add_tokens(
        [
            package.AddedToken(token.content, **{**token.flags, "special": token.content in named or special})
            for token in settings.added
            for special in [token.flags.get("special", False)]
        ]
    )
    for token in settings.added:
        if core.token_to_id(token.content) != token.id:
            raise BadInputError(
                f"{place} has {shown(token.content)} as {core.token_to_id(token.content)}, and tokenizer_config.json "
                f"as {token.id}: they are of two models, so copy both again"
            )
    known = {token.content for token in core.get_added_tokens_decoder().values()}
    core.add_special_tokens([token for token in dict.fromkeys((*named, *settings.unnamed)) if token not in known])
