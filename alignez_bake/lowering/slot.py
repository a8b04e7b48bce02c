"""Where a site's tensors lie in the base's files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.dtypes import is_plain_float
from alignez_bake.safetensors_io.names import resolve_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Layout
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.safetensors_io.header import TensorEntry
    from alignez_bake.site import Site


class TensorSource(Protocol):
    """Named arrays with their shapes: a folder's files, and whatever else edits can be folded into."""

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""
        ...

    def entry(self, name: str) -> TensorEntry:
        """Dtype and shape of a tensor."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """A tensor in its stored dtype."""
        ...


@dataclass(frozen=True)
class Slot:
    """The linear map of a site, as it lies in the files.

    Attributes:
        site: the site.
        weight: key of the weight.
        bias: key of the bias; None where the map has none.
        layout: `out_in` [d_out, d_in] or `in_out`.
        rows: the output rows that belong to the site, where a fused map computes more.
        d_out: width of the site's output.
        d_in: width of the map's input.
        dtype: the file's spelling of the weight's dtype, such as "BF16".
    """

    site: Site
    weight: str
    bias: str | None
    layout: Layout
    rows: slice
    d_out: int
    d_in: int
    dtype: str

    def weight_rows(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The site's part of a stored weight as [d_out, d_in]: a view, so writing into it edits `stored`."""
        oriented = stored if self.layout == "out_in" else stored.T
        return oriented[self.rows]


def find_slot(model: ModelFolder, site: Site) -> Slot:
    """The slot of a linear site in a model folder.

    Raises:
        BadInputError: the architecture has no such map, the layer is out of range, or the file lacks the
            tensor or holds it in a shape that no linear map has.
    """
    architecture, tensors = model.architecture, model.tensors
    linear = architecture.linear_site(site.kind)
    architecture.check_layer(site, model.config)
    module = architecture.module_path(site)
    weight = resolve_key(tensors, f"{module}.weight", architecture.base_model_prefix)
    bias = f"{weight.removesuffix('weight')}bias"
    shape, dtype = tensors.entry(weight).shape, tensors.entry(weight).dtype
    if not is_plain_float(dtype):
        raise BadInputError(
            f"{weight} at site {site} is stored as {dtype}, into which an edit cannot be folded: use an unquantised "
            "base, whose weights are F64, F32, F16 or BF16"
        )
    if len(shape) != 2:
        raise BadInputError(f"{weight} at site {site} has shape {list(shape)}: a linear map's weight has 2 dimensions")
    fused_rows, d_in = shape if linear.layout == "out_in" else shape[::-1]
    rows = linear.row_slice(fused_rows)
    has_bias = bias in tensors
    if has_bias and tensors.entry(bias).shape != (fused_rows,):
        raise BadInputError(f"{bias} has shape {list(tensors.entry(bias).shape)}: its weight needs [{fused_rows}]")
    return Slot(
        site=site,
        weight=weight,
        bias=bias if has_bias else None,
        layout=linear.layout,
        rows=rows,
        d_out=rows.stop - rows.start,
        d_in=d_in,
        dtype=dtype,
    )
