"""Where the last maps of a mixture of experts lie in the base's files.

Two ways are known: a tensor for each expert (mixtral, qwen3_moe, deepseek_v3), or one for all of them (gpt_oss), in
which the experts are the first axis. Shared experts, which every token goes through, have a tensor of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.fp8_blocks import CODES
from alignez_bake.lowering.stored_shape import stored_shape
from alignez_bake.safetensors_io.names import resolve_key
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from alignez_bake.architectures.architecture import LinearSite
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Site

# How transformers stores a tensor of 4-bit floats: blocks of values, and a scale for each block.
_MXFP4_BLOCKS = "_blocks"


class ExpertTensors(NamedTuple):
    """The tensors of one mixture.

    Attributes:
        weights: keys of the weights: one an expert, or one of all experts; shared experts last.
        bias: key of the biases of all experts, [experts, d_out]; None where they have none.
        shape: of one expert's weight as it is stored, 2 dimensions.
        dtype: the file's spelling of the weights' dtype.
    """

    weights: tuple[str, ...]
    bias: str | None
    shape: tuple[int, int]
    dtype: str


def expert_tensors(model: ModelFolder, site: Site, linear: LinearSite) -> ExpertTensors:
    """The tensors of the mixture at a site: those that config.json counts must be those that the files hold.

    Raises:
        BadInputError: a number of experts that is none or not the files', a tensor that is missing, quantised, or of a
            shape or dtype that it cannot have beside the others.
    """
    assert linear.experts is not None
    assert site.layer is not None
    path, count = model.architecture.layer_path(site.layer), _expert_count(model, linear)
    name = f"{path}.{linear.experts}"
    found = _stacked(model, site, name, linear, count) if "{expert}" not in name else _single(model, site, name, count)
    if found.dtype == CODES:
        raise BadInputError(
            f"the experts at site {site} hold FP8 codes: loaders take all maps of a layer's experts for FP8 or none, "
            "so the gates would have to be stored anew too; edit attn_write, layers without experts, or use the "
            "unquantised base"
        )
    if linear.shared_experts is None:
        return found
    shared = resolve_key(model.tensors, f"{path}.{linear.shared_experts}.weight", model.architecture.base_model_prefix)
    axis = 0 if linear.layout == "out_in" else 1
    width, shared_width = found.shape[axis], stored_shape(model, shared, site, 2)[axis]
    if (shared_width, model.tensors.entry(shared).dtype) != (width, found.dtype):
        raise BadInputError(
            f"the experts at site {site} differ in width or dtype: {shared} gives {shared_width} values as "
            f"{model.tensors.entry(shared).dtype}, {found.weights[0]} {width} as {found.dtype}"
        )
    return found._replace(weights=(*found.weights, shared))


def _single(model: ModelFolder, site: Site, pattern: str, count: int) -> ExpertTensors:
    """A tensor for each expert."""
    tensors, prefix = model.tensors, model.architecture.base_model_prefix
    pattern = f"{pattern}.weight"
    weights = tuple(resolve_key(tensors, pattern.format(expert=index), prefix) for index in range(count))
    surplus = pattern.format(expert=count)
    if surplus in tensors or surplus.removeprefix(f"{prefix}.") in tensors:
        raise BadInputError(
            f"config.json counts {count} experts, but the files hold {surplus}: they do not fit each other"
        )
    shapes = {stored_shape(model, weight, site, 2) for weight in weights}
    dtypes = {tensors.entry(weight).dtype for weight in weights}
    if len(shapes) > 1 or len(dtypes) > 1:
        raise BadInputError(f"the experts at site {site} differ in shape or dtype: {weights[0]} and others")
    rows, columns = shapes.pop()
    return ExpertTensors(weights, None, (rows, columns), dtypes.pop())


def _stacked(model: ModelFolder, site: Site, name: str, linear: LinearSite, count: int) -> ExpertTensors:
    """One tensor of all experts."""
    tensors, prefix = model.tensors, model.architecture.base_model_prefix
    blocks = f"{name}{_MXFP4_BLOCKS}"
    if blocks in tensors or blocks.removeprefix(f"{prefix}.") in tensors:
        raise BadInputError(
            f"the experts at site {site} are stored as 4-bit floats with scales (MXFP4: {blocks}), into which an edit "
            "cannot be folded: write the base as bfloat16 first, with transformers' "
            "from_pretrained(.., quantization_config=Mxfp4Config(dequantize=True)) and save_pretrained, and bake that"
        )
    weight = resolve_key(tensors, name, prefix)
    experts, rows, columns = stored_shape(model, weight, site, 3)
    if experts != count:
        raise BadInputError(
            f"config.json counts {count} experts, but {weight} holds {experts}: they do not fit each other"
        )
    bias = None
    if linear.bias == "always":
        bias = resolve_key(tensors, f"{name}_bias", prefix)
        d_out = rows if linear.layout == "out_in" else columns
        if stored_shape(model, bias, site, 2) != (count, d_out):
            raise BadInputError(
                f"{bias} has shape {list(tensors.entry(bias).shape)}: its weight needs {[count, d_out]}"
            )
    return ExpertTensors((weight,), bias, (rows, columns), tensors.entry(weight).dtype)


def _expert_count(model: ModelFolder, linear: LinearSite) -> int:
    stated = {entry: model.config[entry] for entry in linear.expert_count if entry in model.config}
    if len({repr(count) for count in stated.values()}) > 1:
        raise BadInputError(f"config.json has {shown(stated)}: these name one number of experts, and must be equal")
    entry, count = next(iter(stated.items()), (linear.expert_count[0], None))
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _most_experts(model, linear):
        raise BadInputError(
            f"config.json has {entry} = {shown(count)}: it needs a positive number of experts, at most as many as the "
            f"files have room for ({_most_experts(model, linear)})"
        )
    return count


def _most_experts(model: ModelFolder, linear: LinearSite) -> int:
    """More experts than this cannot be in the files, so that no list is made as long as some config says."""
    assert linear.experts is not None
    if "{expert}" in linear.experts:
        return len(model.tensors)
    shapes = [model.tensors.entry(name).shape for name in model.tensors if name.endswith(linear.experts)]
    return max((shape[0] for shape in shapes if shape), default=1)
