"""Which decoder layers of a mixture of experts have an ordinary MLP: entries of config.json say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Mapping


class RuleEntry(NamedTuple):
    """An entry of config.json and what an absent one means.

    Attributes:
        entry: its name.
        default: of transformers' config class.
    """

    entry: str
    default: Any


@dataclass(frozen=True)
class DenseRule:
    """How a model type says which layers are dense; each attribute is an entry, or None where it has no such one.

    Attributes:
        first: number of layers from 0 on that are dense.
        step: of `step` layers the last one is sparse: layer l (from 0) is dense unless l + 1 is a multiple of it.
        listed: layers that are dense whatever else holds; null is an empty list.
    """

    first: RuleEntry | None = None
    step: RuleEntry | None = None
    listed: RuleEntry | None = None

    def layers(self, config: Mapping[str, Any]) -> DenseLayers:
        """The dense layers of a model.

        Raises:
            BadInputError: an entry that is no such number or list.
        """
        first = 0 if self.first is None else _whole_number(config, self.first, least=0)
        step = 1 if self.step is None else _whole_number(config, self.step, least=1)
        return DenseLayers(first, step, frozenset() if self.listed is None else _numbers(config, self.listed))


@dataclass(frozen=True)
class DenseLayers:
    """A set of layers, of any number: `layer in dense_layers`. As made here without arguments it is empty.

    Attributes:
        first, step, listed: as in `DenseRule`, with their values.
    """

    first: int = 0
    step: int = 1
    listed: frozenset[int] = frozenset()

    def __contains__(self, layer: object) -> bool:
        """Whether a layer, counted from 0, is dense."""
        if not isinstance(layer, int):
            return False
        return layer < self.first or layer in self.listed or (layer + 1) % self.step != 0


def _whole_number(config: Mapping[str, Any], rule: RuleEntry, *, least: int) -> int:
    value = config.get(rule.entry, rule.default)
    if not _is_whole(value, least):
        raise BadInputError(f"config.json has {rule.entry} = {shown(value)}: it needs a whole number from {least} on")
    return int(value)


def _numbers(config: Mapping[str, Any], rule: RuleEntry) -> frozenset[int]:
    value = config.get(rule.entry, rule.default)
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(_is_whole(layer, 0) for layer in value):
        raise BadInputError(f"config.json has {rule.entry} = {shown(value)}: it needs a list of layers, counted from 0")
    return frozenset(value)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
