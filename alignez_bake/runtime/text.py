"""A folder as a model of text: graph, tokenizer and stops, with neither torch nor transformers.

    model = open_folder(Path("OUT"), ["cuda", "cpu"])
    answers = model.answer(["How do I clean a copper kettle?"], max_new_tokens=64)
    for piece in model.stream_text([{"role": "user", "content": "And a spout?"}], max_new_tokens=64):
        print(piece, end="", flush=True)

Needs the packages `tokenizers` and, for chats, `jinja2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.chat import chat_text
from alignez_bake.runtime.detokenise import Detokeniser
from alignez_bake.runtime.escaping import shown
from alignez_bake.runtime.generate import generate, stream
from alignez_bake.runtime.session import graph_path, open_session
from alignez_bake.runtime.side_files import SideFiles
from alignez_bake.runtime.special_ids import in_vocabulary, pad_id, stated_stop_ids
from alignez_bake.runtime.tokenizer import load_tokenizer
from alignez_bake.runtime.tokenizer_settings import read_tokenizer_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alignez_bake.runtime.choose import Sampling
    from alignez_bake.runtime.session import OnnxModel
    from alignez_bake.runtime.tokenizer import TextTokenizer
    from alignez_bake.runtime.tokenizer_settings import TokenizerSettings

Prompt = str | Sequence[Mapping[str, str]]
"""A text, to which the tokenizer adds its BOS as it always does; or a chat, whose template writes it."""


@dataclass(frozen=True, eq=False)
class OnnxTextModel:
    """A graph that reads and writes text.

    Attributes:
        graph: the model.
        tokenizer: its tokenizer.
        settings: what the folder says about the tokenizer, the chat template too.
        stop_ids: tokens that end an answer; of none, every answer has as many tokens as it may.
        pad_id: the id at padding.
        positions: how many tokens the model has places for, prompt and answer together; None: not stated.
    """

    graph: OnnxModel
    tokenizer: TextTokenizer
    settings: TokenizerSettings
    stop_ids: frozenset[int]
    pad_id: int
    positions: int | None

    def context(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt.

        Raises:
            BadInputError: a chat, and no chat template, or one that fails.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if self.settings.chat_template is None:
            raise BadInputError(f"{self.graph.path.parent} has no chat template: give the prompt as plain text")
        text = chat_text(self.settings.chat_template, prompt, self.settings.named)
        return self.tokenizer.encode(text, special_tokens=False)

    def contexts(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
        """Token ids of prompts that leave room for their answers.

        Raises:
            BadInputError: as `context`, or more tokens than the model has positions for: beyond them it writes
                nonsense, or fails half-way.
        """
        contexts = [self.context(prompt) for prompt in prompts]
        longest = max(map(len, contexts), default=0)
        if self.positions is not None and longest + max_new_tokens > self.positions:
            raise BadInputError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones are too long for {self.graph.path}, which "
                f"has {self.positions} positions: shorten the prompt, or ask for fewer new tokens"
            )
        return contexts

    def answer(self, prompts: Sequence[Prompt], *, max_new_tokens: int, sampling: Sampling | None = None) -> list[str]:
        """The answer to each prompt; all run in one batch.

        Args:
            prompts: texts or chats.
            max_new_tokens: most new tokens of an answer, at least 1.
            sampling: how tokens are drawn; None: greedy, whatever generation_config.json proposes.

        Returns:
            New text alone, special tokens left out.

        Raises:
            BadInputError: as `contexts` and `generate`.
        """
        if isinstance(prompts, str):
            raise BadInputError("prompts are a list: put the one prompt into one")
        answers = generate(
            self.graph,
            self.contexts(prompts, max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
            sampling=sampling,
        )
        return [self.tokenizer.decode(ids) for ids in answers]

    def stream_text(self, prompt: Prompt, *, max_new_tokens: int, sampling: Sampling | None = None) -> Iterator[str]:
        """`answer` to one prompt, piece by piece: whole characters, none empty, together the answer.

        Args, errors: as `answer`; arguments are checked at once.
        """
        steps = stream(
            self.graph,
            self.contexts([prompt], max_new_tokens),
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
            sampling=sampling,
        )
        return _pieces(steps, self.tokenizer)


def open_folder(folder: Path, providers: Sequence[str]) -> OnnxTextModel:
    """Open a folder with one graph, tokenizer.json, and the configs of the model.

    Args:
        folder: as `bake --as onnx` and optimum write it.
        providers: as `open_session` takes them.

    Returns:
        The model.

    Raises:
        BadInputError: as `open_session`, or a tokenizer or config that is missing, damaged, too large or elsewhere.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder} is no folder: name the one that holds the graph and its tokenizer.json")
    path = graph_path(folder)
    files = SideFiles(folder, path)
    settings = read_tokenizer_settings(files)
    tokenizer = load_tokenizer(files, settings)
    stated = stated_stop_ids(files, tokenizer, settings.named)
    positions = _positions(files)
    graph = open_session(path, providers)  # last: it may take a minute
    vocabulary = graph.signature.vocabulary
    stops = in_vocabulary(stated, vocabulary)
    pad = pad_id(tokenizer, settings.named, stops, vocabulary)
    return OnnxTextModel(graph, tokenizer, settings, stops, pad, positions)


def _positions(files: SideFiles) -> int | None:
    config = files.settings("config.json")
    for name in ("max_position_embeddings", "n_positions"):
        value = config.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise BadInputError(f"{files.folder / 'config.json'}: {name} is {shown(value)}: copy the file again")
            return value
    return None


def _pieces(steps: Iterator[tuple[int | None, ...]], tokenizer: TextTokenizer) -> Iterator[str]:
    text = Detokeniser(tokenizer)
    for (token,) in steps:
        if token is not None:
            piece = text.push(token)
            if piece:
                yield piece
    piece = text.rest()
    if piece:
        yield piece
