"""Text of an answer while it is being written: whole characters alone, and together exactly the whole text.

What the next token adds is the difference of two texts: that of the tokens with it, and that of the tokens before
it. A token's own text would lose the space before a SentencePiece word, and cut a character whose bytes lie in two
tokens. Held back until it is settled:

- U+FFFD at the end of the text: bytes that are no character yet;
- everything behind a byte token (`<0xE2>`) that is the last: its decoder makes U+FFFD of every byte of a run
  that is no UTF-8 as a whole, also of those that were a character before the next one came.

The whole answer is not decoded again for every token: once nothing is held back, old tokens are forgotten. Enough
are kept that the text of the others begins in the same way with and without the next token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from alignez_bake.runtime.tokenizer import TextTokenizer

_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
_KEPT: Final = 16
_MOST: Final = 64


class Detokeniser:
    """One answer on its way to text."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        """Begin with no token."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0  # characters of the text of `_ids` that were given

    def push(self, token: int) -> str:
        """What the text has become longer by; may be empty."""
        if token in self._tokenizer.special_ids:  # no text, and no end of a run of bytes either
            return ""
        self._ids.append(token)
        if token in self._tokenizer.byte_ids:
            return ""
        text = self._tokenizer.decode(self._ids)
        settled = text.rstrip(_INCOMPLETE)
        new = settled[self._given :]
        self._given = max(self._given, len(settled))
        if len(self._ids) >= _MOST and len(settled) == len(text):
            self._forget()
        return new

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        text = self._tokenizer.decode(self._ids)
        new = text[self._given :]
        self._given = len(text)
        return new

    def _forget(self) -> None:
        """Keep the last tokens, if they have text: the first of a text may lose its space, and they stay the first."""
        kept = self._ids[-_KEPT:]
        text = self._tokenizer.decode(kept)
        if text:
            self._ids, self._given = kept, len(text)
