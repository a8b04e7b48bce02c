"""The Python file of an inserted checkpoint, the same for all edits of one model type.

It is a template with class names of ours in it, so that no string of a user's can get into code: which modules are
edited, and how, is data in config.json. The formula is not written there a second time: the template has the
functions' signatures with torch's types, and gets their bodies from `alignez_bake.formula`.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from alignez_bake import formula
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable

CODE_FILE = "modeling_alignez.py"
_PACKAGE = "alignez_bake.inserted"


@dataclass(frozen=True)
class ModelClasses:
    """transformers' classes of a model type, importable from `transformers` itself, and ours.

    Attributes:
        name: the model type as class names spell it.
        config: config class.
        model: causal model class.
        tokenizer: class of the tokenizer that transformers takes for the model type where no file names one.
        flattening_layers: whether a decoder layer hands its maps [batch · positions, d] instead of
            [batch, positions, d].
    """

    name: str
    config: str
    model: str
    tokenizer: str
    flattening_layers: bool = False

    @property
    def own_config(self) -> str:
        """Name of the generated config class."""
        return f"Alignez{self.name}Config"

    @property
    def own_model(self) -> str:
        """Name of the generated model class."""
        return f"Alignez{self.name}ForCausalLM"


def own_model_type(model_type: str) -> str:
    """The model type of inserted checkpoints: one that no library knows, so that none loads them without edits."""
    return f"alignez_{model_type}"


def classes_for(model_type: str) -> ModelClasses:
    """The classes of a model type.

    Raises:
        BadInputError: it has none here.
    """
    known = _known_classes()
    if model_type not in known:
        raise BadInputError(
            f"no modules can be inserted into a model of type {model_type!r}: its classes are not described; "
            f"described are {', '.join(known)}"
        )
    return known[model_type]


def generate_code(model_type: str) -> str:
    """The file's text.

    Raises:
        BadInputError: as `classes_for`.
    """
    classes = classes_for(model_type)
    template = Template(resources.files(_PACKAGE).joinpath("modeling_template.txt").read_text(encoding="utf-8"))
    return template.substitute(
        name=classes.name,
        base_type=model_type,
        own_type=own_model_type(model_type),
        classes=", ".join(sorted((classes.config, classes.model))),
        config_class=classes.config,
        model_class=classes.model,
        own_config=classes.own_config,
        own_model=classes.own_model,
        is_last=_IS_LAST_OF_FLATTENED if classes.flattening_layers else _IS_LAST,
        tell_shape=_TELL_SHAPE if classes.flattening_layers else "",
        **{function.__name__: _body(function) for function in _FORMULA},
    )


_IS_LAST = """\
            last = (torch.arange(rows, device=output.device) == rows - 1).unsqueeze(-1)
"""
# A layer that makes batch and positions one dimension is alone in knowing where in a map's rows a sequence ends. Not
# the rows' numbers modulo the length: ONNX exporters know no remainder by a length that varies.
_IS_LAST_OF_FLATTENED = """\
            batch, length = getattr(self, "batch_and_length", (1, rows))
            last = (torch.arange(length, device=output.device) == length - 1).repeat(batch).unsqueeze(-1)
"""
_TELL_SHAPE = """\
        if hasattr(getattr(self, "fc2", None), "alignez_edits"):  # a layer, which makes batch and positions one
            self.fc2.alignez_edits.batch_and_length = read.shape[:2]
"""

_FORMULA: tuple[Callable[..., object], ...] = (formula.edit_delta, formula.apply_groups)


def _body(function: Callable[..., object]) -> str:
    """First line of the docstring and the code of a function, as its source has them."""
    source = textwrap.dedent(inspect.getsource(function))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    docstring, first = definition.body[:2]
    summary = (inspect.getdoc(function) or "").splitlines()[0]
    code = source.splitlines()[(docstring.end_lineno or 0) : definition.end_lineno]
    assert first.lineno == (docstring.end_lineno or 0) + 1
    return "\n".join([f'    """{summary}"""', *code])


@cache
def _known_classes() -> dict[str, ModelClasses]:
    text = resources.files(_PACKAGE).joinpath("classes.json").read_text(encoding="utf-8")
    return {model_type: ModelClasses(**entry) for model_type, entry in json.loads(text).items()}
