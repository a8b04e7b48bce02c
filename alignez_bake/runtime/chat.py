"""A tokenizer's chat template: messages to the text that the model was trained on.

A template is a program that comes with the model. It runs in jinja2's sandbox, as in transformers, which keeps it
from files and from Python; how long it runs nothing bounds.
"""

from __future__ import annotations

import importlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

_OLDEST_JINJA: Final = (3, 1, 6)
"""Ways out of the sandbox are known in older releases."""


def chat_text(template: str, messages: Sequence[Mapping[str, str]], named: Mapping[str, str]) -> str:
    """The prompt of a chat, up to where the assistant's answer begins.

    Args:
        template: Jinja source.
        messages: each with `role` and `content`.
        named: special tokens by name, such as `bos_token`; the template writes them itself.

    Raises:
        BadInputError: jinja2 is missing or too old, or the template is none, or it refuses the messages.
    """
    jinja2 = _package()
    environment = _environment(jinja2)
    try:
        text: str = environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **named,
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise BadInputError(
            f"the chat template fails ({shown(str(error))}): give the prompt as plain text, or other messages"
        ) from error
    return text


def _package() -> ModuleType:
    try:
        jinja2 = importlib.import_module("jinja2")
        importlib.import_module("jinja2.sandbox")
        importlib.import_module("jinja2.ext")
    except ImportError as error:
        raise BadInputError(f"a chat template needs jinja2 ({error}): pip install 'jinja2>=3.1.6'") from error
    parts = jinja2.__version__.split(".")
    if tuple(int(part) for part in parts[:3] if part.isdigit()) < _OLDEST_JINJA:
        raise BadInputError(f"jinja2 {jinja2.__version__} has known holes: pip install -U 'jinja2>=3.1.6'")
    return jinja2


def _environment(jinja2: ModuleType) -> Any:  # noqa: ANN401 - of a package that is loaded when it is needed
    """What chat templates may use: jinja2's own, loop controls, and the four names that they are written against."""
    nodes = jinja2.nodes

    class Generation(jinja2.ext.Extension):  # type: ignore[misc, name-defined]
        """`{% generation %}`: marks the assistant's words for training, and is nothing here."""

        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:  # noqa: ANN401
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def now(form: str) -> str:
        return datetime.now().astimezone().strftime(form)

    def as_json(
        value: object,
        ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - as templates call it
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,  # noqa: FBT001, FBT002
    ) -> str:
        """jinja2's own escapes for HTML."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment.globals.update(raise_exception=refuse, strftime_now=now)
    environment.filters["tojson"] = as_json
    return environment
