"""How a query, with or without a persona, becomes token ids.

All contexts of one query end in the same tokens, so that what the model does at those tokens can be compared
between personas. Text that is tokenised again after another text can merge differently (SentencePiece), so

- with a template, the persona sentence and its newline are tokenised apart from the prompt form, and joined as ids;
- with a chat template, whole texts are tokenised, and that they end in the same tokens is checked;
- an answer is tokenised apart, and appended as ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.prompts.chat_template import ChatTemplate, chat_template_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = "Human: {query}\nAssistant:"
"""AlignEZ's own prompt form."""

_PLACE = "{query}"


class Contexts(NamedTuple):
    """The same query in several contexts.

    Attributes:
        ids: token ids of each context, BOS included where there is one.
        shared: how many last tokens all of them, and the query without persona, have in common: everything from
            the query on, and never BOS.
    """

    ids: tuple[list[int], ...]
    shared: int


@dataclass(frozen=True, eq=False)
class PromptForm:
    """Turns queries and answers into token ids; made by `prompt_form`.

    Attributes:
        tokenizer: the model's.
        template: text with `{query}` in it once, or None where the chat template is used.
        chat: the chat template, or None where a template is used.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    chat: ChatTemplate | None

    @property
    def settings(self) -> dict[str, str]:
        """What identifies this form in files: `template`, or `chat_template_sha256`."""
        if self.chat is not None:
            return {"chat_template_sha256": self.chat.sha256}
        assert self.template is not None
        return {"template": self.template}

    def prompt_text(self, query: str, sentence: str | None) -> str:
        """The whole prompt as text, to be shown or stored; `context_ids` says how it is tokenised."""
        if self.chat is not None:
            return self.chat.text(query, sentence)
        form = self._filled(query)
        return form if sentence is None else f"{sentence}\n{form}"

    def context_ids(self, query: str, sentence: str | None) -> list[int]:
        """Token ids that an answer is appended to.

        Args:
            query: its text.
            sentence: a persona sentence (see `persona`), or None: nobody asked for a persona.

        Returns:
            The ids: with a template one BOS first, if the tokenizer has one; with a chat template what the
            template says, but never two BOS.

        Raises:
            BadInputError: the chat template fails, or nothing is left to read.
        """
        if self.chat is not None:
            return self._chat_ids(self.chat, query, sentence)
        return self._behind_persona(sentence, self._encode(self._filled(query)))

    def contexts(self, query: str, sentences: Sequence[str | None]) -> Contexts:
        """The same query under several persona sentences.

        Args:
            query: its text.
            sentences: as for `context_ids`.

        Returns:
            The contexts in the order of `sentences`, and how many last tokens they share.

        Raises:
            BadInputError: the contexts do not share all tokens from the query on: the template breaks it.
        """
        wanted = dict.fromkeys((None, *sentences))
        if self.chat is not None:
            found = {sentence: self._chat_ids(self.chat, query, sentence) for sentence in wanted}
            # What holds some of the query or of what follows it.
            needed = len(found[None]) - _common_prefix(self._ids_before_query, found[None])
        else:
            form = self._encode(self._filled(query))
            found = {sentence: self._behind_persona(sentence, form) for sentence in wanted}
            needed = len(form)
        ids = tuple(list(found[sentence]) for sentence in sentences)
        shared = _common_suffix([self._without_bos(context) for context in found.values()])
        if shared < needed:
            raise BadInputError(
                f"under a persona the last {needed} tokens of the query {query[:60]!r} are not the same as without: "
                "the chat template breaks it; give a plain form with --prompt-template"
            )
        return Contexts(ids, shared)

    def text_ids(self, text: str) -> list[int]:
        """A plain text, such as a characteristic prompt or a neutral text, with one BOS if the tokenizer has one."""
        return [*self._bos, *self._encode(text)]

    def answer_ids(self, answer: str, *, eos: bool = False) -> list[int]:
        """An answer as it is appended to a context.

        Args:
            answer: its text, with the leading space with which it was generated.
            eos: append EOS, if the tokenizer has one.
        """
        end = self.tokenizer.eos_token_id
        return [*self._encode(answer), *([end] if eos and end is not None else [])]

    def answer_text(self, ids: Sequence[int]) -> str:
        """Generated ids as text, spaces as they are, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def cut(self, text: str, tokens: int) -> str:
        """The longest beginning of a text that takes at most `tokens` tokens, without white space at its end.

        Generated ids become text and are tokenised anew, which can take more tokens than were generated (a broken
        UTF-8 sequence becomes a replacement character of three bytes), so length is counted on the text.
        """
        while len(self._encode(text)) > tokens:
            text = text[:-1].rstrip()
        return text

    @property
    def _bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    def _encode(self, text: str) -> list[int]:
        # `verbose`: lengths are checked against the model, not against the tokenizer's own idea of a limit.
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _filled(self, query: str) -> str:
        assert self.template is not None
        return self.template.replace(_PLACE, query)

    def _behind_persona(self, sentence: str | None, form: Sequence[int]) -> list[int]:
        """A persona sentence, if any, and a prompt form that is tokenised already."""
        persona = [] if sentence is None else self._encode(f"{sentence}\n")
        return [*self._bos, *persona, *form]

    def _chat_ids(self, chat: ChatTemplate, query: str, sentence: str | None) -> list[int]:
        ids = self._encode(chat.text(query, sentence))
        while self._bos and ids[:2] == self._bos * 2:
            del ids[0]
        return ids

    def _without_bos(self, ids: list[int]) -> list[int]:
        return ids[1:] if self._bos and ids[:1] == self._bos else ids

    @cached_property
    def _ids_before_query(self) -> list[int]:
        """The chat template's own text before the query, without persona."""
        assert self.chat is not None
        before = self._encode(self.chat.before)
        while self._bos and before[:2] == self._bos * 2:
            del before[0]
        return before


def prompt_form(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> PromptForm:
    """The prompt form of a model: the given template, else its chat template, else AlignEZ's form.

    Args:
        tokenizer: the model's.
        template: text that holds `{query}` exactly once; every other brace is an ordinary character.

    Raises:
        BadInputError: a template without `{query}` or with several, or a chat template that does not work.
    """
    if template is None:
        chat = chat_template_of(tokenizer)
        return PromptForm(tokenizer, DEFAULT_TEMPLATE if chat is None else None, chat)
    if template.count(_PLACE) != 1:
        raise BadInputError(
            f"the prompt template {template!r} holds {_PLACE} {template.count(_PLACE)} times: it must hold it once, "
            f"as in {DEFAULT_TEMPLATE!r}"
        )
    return PromptForm(tokenizer, template, None)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    length = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        length += 1
    return length


def _common_suffix(sequences: Sequence[Sequence[int]]) -> int:
    first = sequences[0][::-1]
    return min(_common_prefix(first, sequence[::-1]) for sequence in sequences)
