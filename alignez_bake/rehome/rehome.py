"""From a base to an equivalent one with more places: `rehome(base) -> ModelFolder`, exact, and without code.

The result computes what the base computes, because all that is new is zero, or the copy of a tied head. The ordinary
fold then works on it as on any base: it has the biases, the hidden units and the head that the base lacks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Refusal
from alignez_bake.lowering.slot import find_slot
from alignez_bake.lowering.stored_shape import stored_shape
from alignez_bake.rehome.equivalent_config import equivalent_config
from alignez_bake.rehome.growth import grown_shapes, grown_size, hidden_units
from alignez_bake.rehome.places import places_of
from alignez_bake.rehome.tokenizer import tokenizer_changes
from alignez_bake.rehome.virtual_tensors import NewTensor, VirtualTensors
from alignez_bake.safetensors_io.names import resolve_key
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.rehome.places import BiasSwitch, Places
    from alignez_bake.safetensors_io.reader import TensorFolder


def rehome(
    base: ModelFolder,
    *,
    bias_sites: Collection[Site] = (),
    units: Mapping[int, int] | None = None,
    untied: bool = False,
) -> ModelFolder | Refusal:
    """An equivalent of a base with the biases and hidden units that edits need.

    A bias is switched on for all layers, and so are the others that its entry of config.json brings. Hidden units are
    added to every layer, as many as the neediest needs, and rounded up (`growth.grown_size`); they bring the MLP's
    biases where a switch has them. Where the base's own type has no such places, an equivalent type is taken.

    Args:
        base: the base model; its headers are read, its data is not.
        bias_sites: linear sites whose maps must have a bias.
        units: for each layer with added hidden units their number.
        untied: whether the head must be a tensor of its own.

    Returns:
        The base itself where it has all of it already; an equivalent whose `tensors` are `VirtualTensors`; or why
        there is none.

    Raises:
        BadInputError: a site or layer that the base lacks, or files that do not fit its config.
    """
    units = units or {}
    for layer, count in units.items():
        base.architecture.check_layer(Site("mlp_write", layer), base.config)
        if count < 1:
            raise BadInputError(f"layer {layer} is to have {count} more hidden units: it needs at least 1")
    if heads := [str(site) for site in bias_sites if site.layer is None]:
        return Refusal(f"no equivalent has a bias at {', '.join(heads)}")
    modules = {_module_below_layer(base, site) for site in bias_sites if find_slot(base, site).bias is None}
    if not modules and not units:
        return _untied(base, base) if untied else base
    places = places_of(base.architecture.model_type)
    if places is None:
        return Refusal(f"no equivalent with more places is known of a {base.architecture.model_type} model")
    config = base.config
    if not _has_places(places, modules, units):
        retyped = _retyped(base, places, modules, units)
        if isinstance(retyped, Refusal):
            return retyped
        config, places = retyped
    if units:
        assert places.mlp is not None
        modules |= {module for module in places.mlp.readers if places.switch_of(module) is not None}
    found = _with_places(base, config, places, modules, units)
    return _untied(base, found) if untied and not isinstance(found, Refusal) else found


def _untied(base: ModelFolder, model: ModelFolder) -> ModelFolder | Refusal:
    """The model with a head of its own, a copy of the token embedding; itself where it has one."""
    architecture = model.architecture
    if not architecture.is_tied(model.config):
        return model
    name = f"{architecture.head}.weight"
    if name in base.tensors:
        return Refusal(f"its files hold {name}, which the model does not use, but would if the head were untied")
    embedding = resolve_key(base.tensors, f"{architecture.embed}.weight", architecture.base_model_prefix)
    entry = base.tensors.entry(embedding)
    head = NewTensor(entry.dtype, entry.shape, base.tensors.file_of(embedding), copy_of=embedding)
    return _folder(base, {**model.config, "tie_word_embeddings": False}, _with_new(model.tensors, base, name, head))


def _with_new(tensors: TensorFolder, base: ModelFolder, name: str, tensor: NewTensor) -> VirtualTensors:
    if isinstance(tensors, VirtualTensors):
        return tensors.with_new(name, tensor)
    return VirtualTensors(base.tensors, {name: tensor}, {})


def _with_places(
    base: ModelFolder, config: Mapping[str, Any], places: Places, modules: Iterable[str], units: Mapping[int, int]
) -> ModelFolder | Refusal:
    """The model of a type that has the places: its config with the switches on, and its tensors."""
    needed = {switch.entry for module in modules if (switch := places.switch_of(module)) is not None}
    off = [switch for switch in places.switches if not config.get(switch.entry, switch.default)]
    if (idle := _idle_bias(base, [switch for switch in off if switch.entry in needed])) is not None:
        return Refusal(f"its files hold {idle}, which the model does not use, but would with that bias switched on")
    config = dict(config)
    config.update(dict.fromkeys(sorted(needed), True))
    on = [switch for switch in places.switches if config.get(switch.entry, switch.default)]
    with_biases = _folder(base, config, VirtualTensors(base.tensors, _missing_biases(base, on), {}))
    if not units:
        return with_biases
    assert places.mlp is not None
    size = hidden_units(with_biases, places.mlp)
    if isinstance(size, Refusal):
        return size
    config[places.mlp.size] = grown_size(size, max(units.values()))
    shapes = grown_shapes(with_biases, places.mlp, config[places.mlp.size])
    new = {
        name: replace(tensor, shape=shapes.get(name, tensor.shape))
        for name, tensor in _missing_biases(base, on).items()
    }
    grown = {name: shape for name, shape in shapes.items() if name not in new}
    return _folder(base, config, VirtualTensors(base.tensors, new, grown))


def _folder(base: ModelFolder, config: dict[str, Any], tensors: VirtualTensors) -> ModelFolder:
    # Readers of names, entries and values cannot tell the two apart; `header` and `index` are the base's alone.
    return replace(base, config=config, architecture=architecture_for(config), tensors=cast("TensorFolder", tensors))


def _has_places(places: Places, modules: Collection[str], units: Mapping[int, int]) -> bool:
    """Whether a type has switches for all biases, and an MLP whose added units can be of use."""
    return all(places.switch_of(module) is not None for module in modules) and (
        not units or (places.mlp is not None and (places.mlp.factor is None or _has_factor_bias(places)))
    )


def _has_factor_bias(places: Places) -> bool:
    """Whether an added unit's factor can be held at a constant, which takes a bias."""
    assert places.mlp is not None
    assert places.mlp.factor is not None
    return places.switch_of(places.mlp.factor) is not None


def _retyped(
    base: ModelFolder, places: Places, modules: Collection[str], units: Mapping[int, int]
) -> tuple[dict[str, Any], Places] | Refusal:
    """Config and places of the equivalent of another type."""
    lacking = [f"no switch for a bias of {module}" for module in sorted(modules) if places.switch_of(module) is None]
    if not lacking:
        lacking = ["no biases in its gated MLP, without which added hidden units do nothing"]
    lack = f"a {places.model_type} model has {', '.join(lacking)}"
    if places.equivalent is None:
        return Refusal(f"{lack}: {places.limits}" if places.limits else lack)
    target = places_of(places.equivalent.model_type)
    assert target is not None
    no_equivalent = f"{lack}, and as a {target.model_type} model it would not be the same"
    if not _has_places(target, modules, units):
        return Refusal(f"{lack}, nor has a {target.model_type} model")
    config = equivalent_config(base.config, places.equivalent)
    if isinstance(config, Refusal):
        return Refusal(f"{no_equivalent}: {config.reason}")
    tokenizer = tokenizer_changes(base.path, places.equivalent)
    if isinstance(tokenizer, Refusal):
        return Refusal(f"{no_equivalent}: {tokenizer.reason}")
    return config, target


def _missing_biases(base: ModelFolder, switches: Iterable[BiasSwitch]) -> dict[str, NewTensor]:
    """The zero biases that switches demand and the base lacks; each lies with its weight, in its dtype.

    Raises:
        BadInputError: a weight that is missing, or no matrix of plain floats.
    """
    new = {}
    for layer in range(base.num_layers):
        for module in (module for switch in switches for module in switch.modules_of(base.config)):
            parameter = f"{base.architecture.layer_path(layer)}.{module}.weight"
            weight = resolve_key(base.tensors, parameter, base.architecture.base_model_prefix)
            bias = f"{weight.removesuffix('weight')}bias"
            if bias not in base.tensors:
                # Every map with a switch is a Linear, whose weight is [d_out, d_in].
                d_out, _ = stored_shape(base, weight, None, 2)
                new[bias] = NewTensor(base.tensors.entry(weight).dtype, (d_out,), base.tensors.file_of(weight))
    return new


def _idle_bias(base: ModelFolder, off: Iterable[BiasSwitch]) -> str | None:
    """A bias in the files that is switched off, and so means nothing; None if there is none."""
    architecture = base.architecture
    for layer in range(base.num_layers):
        for module in (module for switch in off for module in switch.modules_of(base.config)):
            name = f"{architecture.layer_path(layer)}.{module}.bias"
            for key in (name, name.removeprefix(f"{architecture.base_model_prefix}.")):
                if key in base.tensors:
                    return key
    return None


def _module_below_layer(base: ModelFolder, site: Site) -> str:
    assert site.layer is not None
    return base.architecture.module_path(site).removeprefix(f"{base.architecture.layer_path(site.layer)}.")
