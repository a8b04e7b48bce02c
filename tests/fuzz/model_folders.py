"""Model folders of every described architecture, config and header: sound ones, and some with one thing damaged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import strategies as st

from alignez_bake.architectures.architecture import INSERTED_EDITS, architecture_for, known_model_types
from alignez_bake.rehome.places import places_of
from alignez_bake.safetensors_io.dtypes import BY_NAME
from alignez_bake.site import LAYERLESS, SITE_KINDS, Site
from tests.fuzz.json_trees import HOSTILE, Members, text_of, tree_of
from tests.fuzz.strategies import file_bytes

LAYERS, EXPERTS, WIDTH, INNER, VOCABULARY = 2, 3, 4, 6, 5
DTYPES = ("F64", "F16", "BF16", "F8_E4M3", "F4", "I8", "I64", "BOOL", "C64")
SHAPES = st.one_of(
    st.lists(st.sampled_from([0, 1, EXPERTS, WIDTH, INNER, 2 * INNER]), max_size=4),
    st.sampled_from([[0, 2**40], [2**40, 0], [2**40, 0, 1], [0, WIDTH], []]),
)


@dataclass(frozen=True)
class MadeModel:
    """A model folder and a site to look for in it.

    Attributes:
        config: the bytes of config.json.
        weights: the bytes of model.safetensors.
        site: the site.
        sound: whether nothing was damaged, and the model has the site.
    """

    config: bytes
    weights: bytes
    site: Site
    sound: bool


@st.composite
def model_folders(draw):
    """Folders of any model type; damaged are entries of the config, or tensors of the header."""
    damage = draw(st.sampled_from(["none", "config", "config", "config", "tensors", "tensors", "both"]))
    model_type = draw(st.sampled_from(known_model_types()))
    config = draw(sound_configs(model_type))
    architecture = architecture_for(config)
    kind = draw(st.sampled_from(("attn_write", "mlp_write", *SITE_KINDS)))
    layer = draw(st.sampled_from([0, 1, 1, LAYERS, 10**9]))
    site = Site(kind) if kind in LAYERLESS else Site(kind, layer)
    has_site = kind in LAYERLESS or (layer < LAYERS and (kind == "residual" or kind in architecture.sites_of(layer)))
    tensors = {name: ("F32", shape) for name, shape in shapes_of(architecture, biases=draw(st.booleans())).items()}
    if damage in ("tensors", "both"):
        for _ in range(draw(st.integers(1, 2))):
            tensors = draw(damaged_tensors(architecture, tensors))
    tree = tree_of(config)
    if damage in ("config", "both"):
        tree = draw(damaged_configs(architecture, tree))
    return MadeModel(text_of(tree), _weights(tensors), site, sound=damage == "none" and has_site)


@st.composite
def sound_configs(draw, model_type):
    """What an architecture needs in its config.json: numbers of layers and experts, and which layers are dense."""
    architecture = architecture_for({"model_type": model_type})
    config = {"model_type": model_type, "architectures": ["XForCausalLM"], architecture.layer_count: LAYERS}
    for linear in architecture.sites.values():
        if linear.expert_count:
            config[draw(st.sampled_from(linear.expert_count))] = EXPERTS
    if (rule := architecture.dense_rule) is not None:
        sound = ((rule.first, [0, 1]), (rule.step, [1, 2]), (rule.listed, [[], [1]]))
        config |= {entry.entry: draw(st.sampled_from(values)) for entry, values in sound if entry is not None}
    for entry in _switches(model_type):
        if draw(st.booleans()):
            config[entry] = draw(st.booleans())
    return config


def shapes_of(architecture, *, biases):
    """The tensors that sites need, and those that an equivalent model looks at."""
    places = places_of(architecture.model_type)
    shapes = {f"{path}.weight": [VOCABULARY, WIDTH] for path in (architecture.embed, architecture.head)}
    for layer in range(LAYERS):
        path = architecture.layer_path(layer)
        for kind, linear in architecture.sites_of(layer).items():
            sizes = {"attn_write": (WIDTH, WIDTH), "mlp_write": (WIDTH, INNER)}.get(kind, (INNER, WIDTH))
            sizes = (sizes[0] * (1 if linear.rows == "all" else 2), sizes[1])
            shapes |= {f"{path}.{name}": shape for name, shape in _shapes_at(linear, sizes, biases).items()}
        for module in _modules(places):
            reads = places.mlp is not None and module in places.mlp.readers
            sizes = [INNER, WIDTH] if reads else [WIDTH, WIDTH]
            in_out = places.mlp is not None and places.mlp.layout == "in_out"
            shapes.setdefault(f"{path}.{module}.weight", sizes[::-1] if in_out else sizes)
    return shapes


def _shapes_at(linear, sizes, biases):
    """The tensors of one site, by name below the layer."""
    stored = list(sizes if linear.layout == "out_in" else sizes[::-1])
    if linear.experts is None:
        bias = {f"{linear.module}.bias": [sizes[0]]} if biases and linear.bias != "never" else {}
        return {f"{linear.module}.weight": stored} | bias
    if "{expert}" not in linear.experts:
        bias = {f"{linear.experts}_bias": [EXPERTS, sizes[0]]} if linear.bias == "always" else {}
        return {linear.experts: [EXPERTS, *stored]} | bias
    experts = {f"{linear.experts.format(expert=index)}.weight": stored for index in range(EXPERTS)}
    shared = {} if linear.shared_experts is None else {f"{linear.shared_experts}.weight": [sizes[0], 2 * sizes[1]]}
    return experts | shared


def _modules(places):
    """Every map below a layer that can be given biases or hidden units."""
    if places is None:
        return []
    mlp = () if places.mlp is None else (*places.mlp.readers, places.mlp.write)
    return [*mlp, *(module for switch in places.switches for module in switch.modules)]


def _switches(model_type):
    """The entries that switch biases on."""
    places = places_of(model_type)
    return [] if places is None else [switch.entry for switch in places.switches]


@st.composite
def damaged_tensors(draw, architecture, tensors):
    """The same tensors but for one: another shape or dtype, another name, gone, or one too many."""
    name = draw(st.sampled_from(sorted(tensors)))
    dtype, shape = tensors[name]
    others = {other: entry for other, entry in tensors.items() if other != name}
    prefix = f"{architecture.base_model_prefix}."
    what = draw(st.sampled_from(["shape", "shape", "shape", "dtype", "turn", "drop", "bare name", "copy", "expert"]))
    if what == "drop" and others:
        return others
    if what == "bare name":
        return others | {name.removeprefix(prefix): (dtype, shape)}
    if what == "copy":
        return tensors | {name.removeprefix(prefix): (dtype, shape), prefix + name: (dtype, shape)}
    if what == "expert":
        return tensors | {name.replace(f".{EXPERTS - 1}.", f".{EXPERTS}."): (dtype, shape)}
    if what == "turn":
        return tensors | {name: (dtype, shape[::-1])}
    if what == "dtype":
        dtype = draw(st.sampled_from(DTYPES))
    if what == "shape":
        shape = draw(SHAPES)
    fits = math.prod(shape) * BY_NAME[dtype].bits % 8 == 0
    return tensors | {name: (dtype, shape)} if fits else tensors


@st.composite
def damaged_configs(draw, architecture, tree):
    """The same config with hostile values of entries that are read, or without them."""
    places = places_of(architecture.model_type)
    counts = [entry for linear in architecture.sites.values() for entry in linear.expert_count]
    rule = architecture.dense_rule
    rules = [] if rule is None else [entry.entry for entry in (rule.first, rule.step, rule.listed) if entry is not None]
    others = [architecture.parallel_switch, architecture.pre_norm_switch, architecture.writer_multiplier]
    read = [
        *("model_type", "architectures", "tie_word_embeddings", "quantization_config", INSERTED_EDITS),
        *[architecture.layer_count, *counts, *rules] * 2,
        *(entry for entry in others if entry is not None),
    ]
    if places is not None:
        read += [entry for switch in places.switches for entry in (switch.entry, *switch.optional.values())]
        read += [] if places.mlp is None else [places.mlp.size, places.mlp.activation.entry]
        read += [] if places.equivalent is None else [*places.equivalent.entries, *places.equivalent.dropped]
    values = dict(tree)
    for name in draw(st.lists(st.sampled_from(read), min_size=1, max_size=2)):
        value = draw(st.integers(-1, EXPERTS + 1) | HOSTILE | HOSTILE.map(lambda inner: [inner]))
        if name == "quantization_config" and draw(st.booleans()):
            value = Members([["quant_method", "fp8"], ["weight_block_size", draw(st.sampled_from([[2, 2], value]))]])
        values.pop(name, None)
        if draw(st.integers(0, 7)):
            values[name] = value
    if draw(st.integers(0, 7)) == 0:
        values[draw(HOSTILE_NAMES)] = True
    return Members([name, value] for name, value in values.items())


HOSTILE_NAMES = st.sampled_from(["a\nb", "\x1b[31m", "", "x" * 3000, "\U0001f600"])


def _weights(tensors):
    """A safetensors file of zeros."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BY_NAME[dtype].bits // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return file_bytes(text_of(tree_of(header)), bytes(offset))
