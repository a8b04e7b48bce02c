"""What a data file says of an architecture, and how it is found by `model_type`, exactly.

There is no fallback: a model type without a file is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from alignez_bake.architectures.dense_layers import DenseLayers, DenseRule, RuleEntry
from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import shown
from alignez_bake.site import LEGAL_READS, Reads, Site, SiteKind

if TYPE_CHECKING:
    from collections.abc import Mapping

Layout = Literal["out_in", "in_out"]
Rows = Literal["all", "first_half", "second_half"]
Routing = Literal["softmax", "softmax_of_chosen", "sigmoid"]
"""How a router weighs the experts that it chooses; the formulas are in `certificate/expert_weights.py`."""

INSERTED_PREFIX = "alignez_"
"""What precedes the base's model type in that of a checkpoint with inserted modules."""
INSERTED_EDITS = "alignez_edits"
"""Entry of config.json that lists its edits."""
_DATA_PACKAGE = "alignez_bake.architectures.data"


@dataclass(frozen=True)
class LinearSite:
    """The linear map whose output is a site.

    Attributes:
        module: dotted path below the decoder layer.
        layout: how its weight lies in memory: `out_in` [d_out, d_in] (Linear) or `in_out` (gpt2's Conv1D).
        rows: which rows of its output belong to the site, where a fused map computes two.
        post_norm: path of the norm that follows the writer before its output joins the residual stream.
        bias: `never`, `always`, or the entry of config.json that says whether the map has one. `always` of experts
            means as well that the weights which their router gives sum to one.
        experts: of a mixture of experts, where `module` gives the sum of the experts' outputs, weighed by a router:
            path of the last map of expert `{expert}`, as the files name it; without `{expert}`, name of the one
            tensor that holds all of them, [experts, ..] in the layout, with their biases in `<name>_bias`.
        shared_experts: path of the last map of the experts that every token goes through, whose output joins the sum
            unweighed; None: there are none.
        expert_count: entries of config.json with the number of experts, by the names that releases gave it.
        router: path below the decoder layer of the map that gives each token to some of the experts.
        routing: how it weighs them.
    """

    module: str
    layout: Layout = "out_in"
    rows: Rows = "all"
    post_norm: str | None = None
    bias: str = "never"
    experts: str | None = None
    shared_experts: str | None = None
    expert_count: tuple[str, ...] = ()
    router: str | None = None
    routing: Routing | None = None

    @property
    def legal_reads(self) -> tuple[Reads, ...]:
        """What an edit here can read, of what its kind allows: experts have each an input of their own."""
        return ("output", "block") if self.experts is not None else ("output", "input", "block")

    def row_slice(self, fused_rows: int) -> slice:
        """The rows of the site within a fused output of `fused_rows`."""
        half = fused_rows // 2
        return {"all": slice(0, fused_rows), "first_half": slice(0, half), "second_half": slice(half, fused_rows)}[
            self.rows
        ]


@dataclass(frozen=True)
class Architecture:
    """Module paths and layouts of one model type.

    Attributes:
        model_type: of config.json.
        base_model_prefix: attribute of the causal model that holds the headless model; files may lack it.
        layers: path of the list of decoder layers.
        layer_count: name of the number of layers in config.json.
        embed: path of the token embedding. Its output is the site `embed` (gemma's module scales it).
        head: name of the output embedding in the files.
        tied_by_default: whether head and embedding are one tensor where config.json does not say.
        final_norm: path of the norm after the last layer; what enters it is the residual stream.
        sites: the linear maps with a site; where layers differ, of those with experts.
        blocks: for each writer the module whose input `reads: block` reads, below the decoder layer.
        head_module: path of the output embedding; None: as in the files.
        absent_sites: kinds that the architecture cannot have, with the reason; where layers differ, as `sites`.
        dense_sites: sites that layers with an ordinary MLP have instead of, or beside, `sites`.
        dense_rule: how config.json says which layers those are; None: there are none.
        dense_layers: those of the model at hand.
        embed_scaled: whether the embedding module multiplies what it looks up.
        learned_positions: whether a learned position embedding joins the stream after the token embedding.
        parallel_switch: entry of config.json (absent: true) by which attention and MLP both read the layer's input.
        pre_norm_switch: entry of config.json (absent: true) without which a norm follows each sum, so that a layer's
            output is no longer a sum of writers.
        writer_multiplier: entry of config.json (absent: 1) by which what a writer gives is multiplied as it joins the
            residual stream.
        flattens: whether the module at `mlp_write` gets batch and length as one dimension.
        min_transformers: the oldest release whose module tree has these paths, and whose routers give what is told
            here, if older ones are not alike.
    """

    model_type: str
    base_model_prefix: str
    layers: str
    layer_count: str
    embed: str
    head: str
    tied_by_default: bool
    final_norm: str
    sites: Mapping[SiteKind, LinearSite]
    blocks: Mapping[SiteKind, str]
    absent_sites: Mapping[SiteKind, str]
    dense_sites: Mapping[SiteKind, LinearSite]
    head_module: str | None = None
    dense_rule: DenseRule | None = None
    dense_layers: DenseLayers = field(default_factory=DenseLayers)
    embed_scaled: bool = False
    learned_positions: bool = False
    parallel_switch: str | None = None
    pre_norm_switch: str | None = None
    writer_multiplier: str | None = None
    flattens: bool = False
    min_transformers: str | None = None

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether token embedding and head are one tensor."""
        return bool(config.get("tie_word_embeddings", self.tied_by_default))

    def is_parallel(self, config: Mapping[str, Any]) -> bool:
        """Whether attention and MLP both read the layer's input, so that neither sees what the other writes."""
        return self.parallel_switch is not None and bool(config.get(self.parallel_switch, True))

    def layers_are_sums(self, config: Mapping[str, Any]) -> bool:
        """Whether a layer's output is the sum of its input and its two writers' outputs, nothing else in between."""
        pre_norm = self.pre_norm_switch is None or bool(config.get(self.pre_norm_switch, True))
        plain = pre_norm and not self.multiplies_writers(config)
        return plain and all(self.sites[kind].post_norm is None for kind in self.blocks)

    def multiplies_writers(self, config: Mapping[str, Any]) -> bool:
        """Whether what a writer gives joins the residual stream times another number than 1."""
        return self.writer_multiplier is not None and config.get(self.writer_multiplier, 1) != 1

    def num_layers(self, config: Mapping[str, Any]) -> int:
        """Number of decoder layers that a config.json states.

        Raises:
            BadInputError: the entry is missing or no positive integer.
        """
        count = config.get(self.layer_count)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise BadInputError(f"config.json has {self.layer_count} = {shown(count)}: it needs a positive integer")
        return count

    def layer_path(self, layer: int) -> str:
        """Module path of a decoder layer."""
        return f"{self.layers}.{layer}"

    def sites_of(self, layer: int | None) -> Mapping[SiteKind, LinearSite]:
        """The linear maps with a site in one layer; of None, `sites`."""
        return {**self.sites, **self.dense_sites} if layer in self.dense_layers else self.sites

    @property
    def head_site(self) -> LinearSite:
        """The output embedding as a linear map; its module is a path from the causal model down."""
        return LinearSite(self.head_module or self.head)

    def find_linear(self, kind: SiteKind, layer: int | None = None) -> LinearSite | None:
        """The linear map at a site, as `linear_site`; None where its layer has none, and for sites that are no map."""
        return self.head_site if kind == "lm_head" else self.sites_of(layer).get(kind)

    def linear_site(self, kind: SiteKind, layer: int | None = None) -> LinearSite:
        """The linear map of a kind of site in one layer.

        Args:
            kind: of the site.
            layer: the layer; None stands for those with experts, where layers differ.

        Raises:
            BadInputError: the layer has no such map, or the data file does not name it.
        """
        found = self.find_linear(kind, layer)
        if found is not None:
            return found
        reason = self.absent_sites.get(kind, "it is not described for this architecture")
        where = f" in layer {layer}" if layer is not None and kind in self.dense_sites else ""
        raise BadInputError(
            f"{self.model_type} has no site {kind!r}{where}: {reason}; its sites are {', '.join(self.sites_of(layer))}"
        )

    def module_path(self, site: Site) -> str:
        """Module path of the map at a linear site, from the causal model down.

        Raises:
            BadInputError: as `linear_site`.
        """
        module = self.linear_site(site.kind, site.layer).module
        return module if site.layer is None else f"{self.layer_path(site.layer)}.{module}"

    def standalone_path(self, site: Site) -> str:
        """Path of a module that gives the output of a linear site for its input alone, perhaps first of several.

        That is the map; of experts, which need the router's choice beside their input, the block that they end.
        """
        experts = self.linear_site(site.kind, site.layer).experts is not None
        return self.block_path(site) if experts else self.module_path(site)

    def router_paths(self, layers: int) -> dict[str, Routing]:
        """Module paths of the routers of the first `layers` layers, in order, each with how it weighs its experts."""
        return {
            f"{self.layer_path(layer)}.{linear.router}": linear.routing
            for layer in range(layers)
            for linear in self.sites_of(layer).values()
            if linear.router is not None and linear.routing is not None
        }

    def block_path(self, site: Site) -> str:
        """Module path of the attention or MLP module whose input `reads: block` reads."""
        assert site.layer is not None
        return f"{self.layer_path(site.layer)}.{self.blocks[site.kind]}"

    def check_layer(self, site: Site, config: Mapping[str, Any]) -> None:
        """Refuse a site in a layer that the model lacks.

        Raises:
            BadInputError: the layer is not within the model.
        """
        count = self.num_layers(config)
        if site.layer is not None and site.layer >= count:
            raise BadInputError(f"site {site} is out of range: the model has layers 0 to {count - 1}")

    def legal_reads(self, layer: int | None = None) -> dict[SiteKind, tuple[Reads, ...]]:
        """The sites of a layer with what an edit there can read; `layer` as in `linear_site`."""
        return {
            kind: tuple(reads for reads in LEGAL_READS[kind] if reads in linear.legal_reads)
            for kind, linear in self.sites_of(layer).items()
        }


def known_model_types() -> tuple[str, ...]:
    """Model types with a data file, sorted."""
    files = resources.files(_DATA_PACKAGE).iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def architecture_for(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a model by the `model_type` of its config.json, exactly.

    Raises:
        BadInputError: no `model_type`, or one without a data file; entries that do not say which layers have experts.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and INSERTED_EDITS in config:
        # A result with inserted modules: its decoder layers and maps lie where the base's do.
        model_type = model_type.removeprefix(INSERTED_PREFIX)
    if not isinstance(model_type, str):
        raise BadInputError("config.json has no model_type: it is not the config of a transformers model")
    if model_type not in known_model_types():
        known = ", ".join(known_model_types())
        raise BadInputError(f"model_type {shown(model_type)} is not described here; described are {known}")
    architecture = _read_architecture(model_type)
    if architecture.dense_rule is None:
        return architecture
    return replace(architecture, dense_layers=architecture.dense_rule.layers(config))


@cache
def _read_architecture(model_type: str) -> Architecture:
    text = resources.files(_DATA_PACKAGE).joinpath(f"{model_type}.json").read_text(encoding="utf-8")
    data = json.loads(text)
    sites, dense_sites = (_linear_sites(data.pop(key, {})) for key in ("sites", "dense_sites"))
    rule = data.pop("dense_rule", None)
    if rule is not None:
        data["dense_rule"] = DenseRule(**{name: RuleEntry(**entry) for name, entry in rule.items()})
    return Architecture(**{"absent_sites": {}, **data, "sites": sites, "dense_sites": dense_sites})


def _linear_sites(entries: Mapping[str, Any]) -> dict[str, LinearSite]:
    return {
        kind: LinearSite(**{**entry, "expert_count": tuple(entry.get("expert_count", ()))})
        for kind, entry in entries.items()
    }
