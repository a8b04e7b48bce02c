"""What a data file says of the places that a model of one type can be given: biases, hidden units, another type.

The files lie in `rehome/data`; tests prove them against the live models and config classes of transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.architectures.architecture import Layout

_DATA_PACKAGE = "alignez_bake.rehome.data"

DropRule = Literal["ignored", "false", "full_attention", "idle_window"]


class BiasSwitch(NamedTuple):
    """An entry of config.json that gives maps of every layer a bias.

    Attributes:
        entry: its name.
        default: what an absent entry means.
        modules: the maps below a decoder layer whose biases it switches.
        optional: those of them that a model lacks where an entry of config.json is null, each with the entry's name.
    """

    entry: str
    default: bool
    modules: tuple[str, ...]
    optional: Mapping[str, str] = MappingProxyType({})

    def modules_of(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """The maps that a model with this config has."""
        lacking = {module for module, entry in self.optional.items() if entry in config and config[entry] is None}
        return tuple(module for module in self.modules if module not in lacking)


class DefaultedEntry(NamedTuple):
    """An entry of config.json and what an absent one means."""

    entry: str
    default: Any


class DroppedEntry(NamedTuple):
    """An entry that the equivalent type does not know, and when leaving it out changes nothing.

    Attributes:
        rule: `ignored`: always; `false`: if it is false or null; `full_attention`: if it is null or a list of this
            word alone; `idle_window`: a sliding window that is null or at least as long as the model's context.
        default: what an absent entry means.
    """

    rule: DropRule
    default: Any


@dataclass(frozen=True)
class Mlp:
    """The maps of a dense MLP, below a decoder layer: y = W_write ( f(W_read x) [ * W_factor x ] ).

    Attributes:
        activation: entry with the name of f.
        size: entry with the number of hidden units.
        read: the map whose output enters f: the gate of a gated MLP.
        factor: the map whose output multiplies f's in a gated MLP; None in a plain one.
        write: the map back to the residual stream.
        layout: how the weights of all of them lie in memory.
    """

    activation: DefaultedEntry
    size: str
    read: str
    factor: str | None
    write: str
    layout: Layout = "out_in"

    @property
    def readers(self) -> tuple[str, ...]:
        """The maps that have one output row a hidden unit."""
        return (self.read,) if self.factor is None else (self.read, self.factor)

    def activation_of(self, config: Mapping[str, Any]) -> str:
        """Name of f in transformers' table."""
        return str(config.get(self.activation.entry, self.activation.default))


@dataclass(frozen=True)
class Equivalent:
    """Another model type that computes the same from the same tensors.

    Attributes:
        model_type: of the equivalent.
        class_name: its causal class, for the entry `architectures`.
        entries: every entry that is carried, with the source type's own default: that is written out where the
            entry is absent, because the two types have different ones.
        carried: entries that both types read alike, carried where they are present.
        rope_theta: what both types take where no rotary base is given; written out.
        dropped: entries that the equivalent does not know.
        added: entries that the equivalent needs for what the source type always does.
        tokenizer_class: the class by which AutoTokenizer loads what it loads for the source type.
        same_tokenizer_classes: classes in tokenizer_config.json for which it does so unchanged.
    """

    model_type: str
    class_name: str
    entries: Mapping[str, Any]
    carried: tuple[str, ...]
    rope_theta: float
    dropped: Mapping[str, DroppedEntry]
    added: Mapping[str, bool]
    tokenizer_class: str
    same_tokenizer_classes: tuple[str, ...]


@dataclass(frozen=True)
class Places:
    """What a model of one type can be given without changing what it computes.

    Attributes:
        model_type: of config.json.
        switches: the biases that its config can switch on.
        mlp: its MLP, where hidden units can be added to it or to its equivalent's; else None.
        equivalent: another type that has more places; None if there is none.
        limits: why it has no more places, for people.
    """

    model_type: str
    switches: tuple[BiasSwitch, ...]
    mlp: Mlp | None = None
    equivalent: Equivalent | None = None
    limits: str = ""

    def switch_of(self, module: str) -> BiasSwitch | None:
        """The switch that gives a map of this path below the layer its bias."""
        return next((switch for switch in self.switches if module in switch.modules), None)


def described_model_types() -> tuple[str, ...]:
    """Model types with a data file, sorted."""
    files = resources.files(_DATA_PACKAGE).iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def places_of(model_type: str) -> Places | None:
    """What is known of a model type; None if nothing is."""
    return _read_places(model_type) if model_type in described_model_types() else None


@cache
def _read_places(model_type: str) -> Places:
    text = resources.files(_DATA_PACKAGE).joinpath(f"{model_type}.json").read_text(encoding="utf-8")
    data = json.loads(text)
    switches = tuple(BiasSwitch(**{**switch, "modules": tuple(switch["modules"])}) for switch in data.pop("switches"))
    mlp, equivalent = data.pop("mlp", None), data.pop("equivalent", None)
    return Places(
        switches=switches,
        mlp=None if mlp is None else _mlp(mlp),
        equivalent=None if equivalent is None else _equivalent(equivalent),
        **data,
    )


def _mlp(data: dict[str, Any]) -> Mlp:
    return Mlp(**{**data, "activation": DefaultedEntry(**data["activation"])})


def _equivalent(data: dict[str, Any]) -> Equivalent:
    dropped = {name: DroppedEntry(**entry) for name, entry in data["dropped"].items()}
    lists = {name: tuple(data[name]) for name in ("carried", "same_tokenizer_classes")}
    return Equivalent(**{**data, **lists, "dropped": dropped})
