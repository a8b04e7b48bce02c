"""A tokenizer's chat template, and where a persona sentence goes in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Letters and digits alone, so that no template changes them.
_USER_MARK = "Q7userQ7text"
_SYSTEM_MARK = "Q7systemQ7text"


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """How a chat template shows one query to the model.

    Attributes:
        tokenizer: whose template.
        takes_system: whether a persona goes into a system message; else it goes before the user's text, with a
            newline after it.
        before: text before the user's own, without persona.
        after: text after it, up to where the answer begins.
    """

    tokenizer: PreTrainedTokenizerBase
    takes_system: bool
    before: str
    after: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the template's source."""
        source = self.tokenizer.chat_template
        text = source if isinstance(source, str) else json.dumps(source, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def text(self, query: str, sentence: str | None) -> str:
        """What the model reads: the query under a persona sentence, or without one.

        Raises:
            BadInputError: the template fails for this query, or changes its text.
        """
        if sentence is None:
            text = _render(self.tokenizer, None, query)
            if text not in (self.before + query + self.after, self.before + query.strip() + self.after):
                raise BadInputError(
                    f"the tokenizer's chat template changes the text of the query {query[:60]!r}: "
                    "give a plain form with --prompt-template"
                )
            return text
        if self.takes_system:
            return _render(self.tokenizer, sentence, query)
        return _render(self.tokenizer, None, f"{sentence}\n{query}")


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """The tokenizer's chat template, or None where it has none.

    Raises:
        BadInputError: the template fails for a single user message, or does not show it once.
    """
    if not tokenizer.chat_template:
        return None
    shown = _render(tokenizer, None, _USER_MARK)
    if shown.count(_USER_MARK) != 1:
        raise BadInputError(
            f"the tokenizer's chat template shows the user's text {shown.count(_USER_MARK)} times: "
            "give a plain form with --prompt-template"
        )
    before, after = shown.split(_USER_MARK)
    return ChatTemplate(tokenizer, _takes_system(tokenizer), before, after)


def _takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Some templates refuse a system message, others drop it in silence."""
    try:
        shown = _render(tokenizer, _SYSTEM_MARK, _USER_MARK)
    except BadInputError:
        return False
    return shown.count(_SYSTEM_MARK) == 1 and shown.count(_USER_MARK) == 1


def _render(tokenizer: PreTrainedTokenizerBase, system: str | None, user: str) -> str:
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": user})
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise BadInputError(
            f"the tokenizer's chat template fails ({error}): give a plain form with --prompt-template"
        ) from error
    return text
