"""Where a site's tensors lie in the base's files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from alignez_bake.architectures.architecture import INSERTED_EDITS
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.expert_tensors import expert_tensors
from alignez_bake.lowering.stored_shape import stored_shape
from alignez_bake.rehome.places import places_of
from alignez_bake.safetensors_io.names import resolve_key
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Layout, LinearSite
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.safetensors_io.header import TensorEntry

_TIED_HEAD: Final = "the head is tied to the embedding: an edit of its weight would change what is looked up as well"

SlotKind = Literal["map", "experts", "embedding", "stream"]


class TensorSource(Protocol):
    """Named arrays with their shapes: a folder's files, and whatever else edits can be folded into."""

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Names of all tensors."""
        ...

    def __len__(self) -> int:
        """Number of tensors."""
        ...

    def entry(self, name: str) -> TensorEntry:
        """Dtype and shape of a tensor."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """A tensor in its stored dtype."""
        ...


class RowSource(TensorSource, Protocol):
    """A source of which rows can be read without the rest."""

    def read_rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Rows [first, end) of a tensor, seen as [product of its leading dimensions, its last one]."""
        ...

    def place_of(self, name: str) -> Path:
        """The file that a tensor comes from, for messages."""
        ...


@dataclass(frozen=True)
class Slot:
    """What computes the output of a site, as it lies in the files.

    Attributes:
        site: the site.
        kind: `map`: a linear map; `experts`: the last maps of a mixture of experts, whose weighed sum, with shared
            experts added, is the output;
            `embedding`: a table [V, d], that is, a map of one-hot vectors; `stream`: no tensor at all, the residual
            stream behind a layer.
        weights: keys of the weights: one; of experts one each, the shared ones last, or one tensor [experts, ..] of
            all of them; none for `stream`.
        bias: key of the bias, of experts [experts, d_out]; None where the map has none, whatever the files hold.
        layout: `out_in` [d_out, d_in] or `in_out`.
        rows: the output rows that belong to the site, where a fused map computes more.
        d_out: width of the site's output.
        d_in: width of the map's input, of routed experts where there are shared ones too; of `stream`, d_out.
        dtype: the file's spelling of the weights' dtype once they are edited, such as "BF16"; "" for `stream`.
        obstacle: why nothing at all can be folded here, or empty.
        model_type: of the model, for artefacts that not every architecture has.
        post_norm: path of the norm that follows the map before its output joins the residual stream.
        multiplier: entry of config.json by which a writer's output is multiplied before it joins the residual stream,
            where that is not 1.
    """

    site: Site
    kind: SlotKind
    weights: tuple[str, ...]
    bias: str | None
    layout: Layout
    rows: slice
    d_out: int
    d_in: int
    dtype: str
    obstacle: str = ""
    model_type: str = ""
    post_norm: str | None = None
    multiplier: str | None = None

    @property
    def weight(self) -> str:
        """Key of the one weight, or of the first expert's."""
        return self.weights[0]

    def weight_rows(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The site's part of a stored weight as [.., d_out, d_in]: a view, so writing into it edits `stored`."""
        oriented = stored if self.layout == "out_in" else stored.swapaxes(-1, -2)
        return oriented[..., self.rows, :]


def find_slot(model: ModelFolder, site: Site) -> Slot:
    """The slot of a site in a model folder.

    Raises:
        BadInputError: the architecture has no such site, the layer is out of range, the file lacks a tensor or holds
            it in a shape that it cannot have, or the model is a result with inserted modules.
    """
    if INSERTED_EDITS in model.config:
        # Its modules edit what its maps put out, so a fold would stand before those edits instead of behind them.
        raise BadInputError(
            f"{model.path} is a result with inserted modules ({INSERTED_EDITS} in config.json), which cannot be baked "
            "again: bake from its base, with all edits in one file"
        )
    model.architecture.check_layer(site, model.config)
    if site.kind == "residual":
        return _stream_slot(model, site)
    if site.kind == "embed":
        return _embedding_slot(model, site)
    return _map_slot(model, site)


def _stream_slot(model: ModelFolder, site: Site) -> Slot:
    width = find_slot(model, Site("mlp_write", site.layer)).d_out
    obstacle = "the residual stream behind a layer is a sum: no tensor of its own computes it"
    rows, model_type = slice(0, width), model.architecture.model_type
    return Slot(site, "stream", (), None, "out_in", rows, width, width, "", obstacle, model_type)


def _embedding_slot(model: ModelFolder, site: Site) -> Slot:
    architecture = model.architecture
    weight = resolve_key(model.tensors, f"{architecture.embed}.weight", architecture.base_model_prefix)
    vocabulary, width = stored_shape(model, weight, site, 2)
    obstacle = ""
    if architecture.is_tied(model.config):
        obstacle = "the embedding is tied to the head: an edit of its weight would change the logits as well"
    elif architecture.embed_scaled:
        obstacle = "the embedding module scales what it looks up"
    dtype = model.dtype_of_edited(weight)
    # e = Eᵀ 1_t: a map [d, V] of one-hot vectors, which the file holds transposed.
    rows, model_type = slice(0, width), architecture.model_type
    return Slot(site, "embedding", (weight,), None, "in_out", rows, width, vocabulary, dtype, obstacle, model_type)


def _map_slot(model: ModelFolder, site: Site) -> Slot:
    architecture, tensors = model.architecture, model.tensors
    linear = architecture.linear_site(site.kind, site.layer)
    if linear.experts is not None:
        weights, bias, shape, dtype = expert_tensors(model, site, linear)
    else:
        weight = resolve_key(tensors, _parameter(model, site), architecture.base_model_prefix)
        rows_or_columns, others = stored_shape(model, weight, site, 2)
        weights, bias, shape = (weight,), _bias_of(model, weight, linear), (rows_or_columns, others)
        dtype = model.dtype_of_edited(weight)
    fused_rows, d_in = shape if linear.layout == "out_in" else shape[::-1]
    if linear.experts is None and bias is not None and stored_shape(model, bias, site, 1) != (fused_rows,):
        raise BadInputError(f"{bias} has shape {list(tensors.entry(bias).shape)}: its weight needs [{fused_rows}]")
    rows = linear.row_slice(fused_rows)
    multiplied = site.kind in architecture.blocks and architecture.multiplies_writers(model.config)
    return Slot(
        site=site,
        kind="map" if linear.experts is None else "experts",
        weights=weights,
        bias=bias,
        layout=linear.layout,
        rows=rows,
        d_out=rows.stop - rows.start,
        d_in=d_in,
        dtype=dtype,
        obstacle=_TIED_HEAD if site.kind == "lm_head" and architecture.is_tied(model.config) else "",
        model_type=architecture.model_type,
        post_norm=linear.post_norm,
        multiplier=architecture.writer_multiplier if multiplied else None,
    )


def _parameter(model: ModelFolder, site: Site) -> str:
    """Name of the weight; of a tied head the embedding's, since the files need not hold both."""
    architecture = model.architecture
    if site.kind != "lm_head":
        return f"{architecture.module_path(site)}.weight"
    return f"{architecture.embed if architecture.is_tied(model.config) else architecture.head}.weight"


def _bias_of(model: ModelFolder, weight: str, linear: LinearSite) -> str | None:
    bias = f"{weight.removesuffix('weight')}bias"
    return bias if bias in model.tensors and _uses_bias(model, linear) else None


def _uses_bias(model: ModelFolder, linear: LinearSite) -> bool:
    """Whether the model's map adds a bias that its files hold; else that is a tensor which no loader looks at."""
    if linear.bias in ("never", "always"):
        return linear.bias == "always"
    places = places_of(model.architecture.model_type)
    switch = None if places is None else places.switch_of(linear.module)
    assert switch is not None, f"no default is described for {linear.bias}"
    return bool(model.config.get(switch.entry, switch.default))
