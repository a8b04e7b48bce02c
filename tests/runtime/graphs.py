"""Small ONNX graphs made by hand: a causal model whose cache shows when it is wrong, and graphs to be refused.

The model has no attention. Each layer keeps a key and a value for every token and sums what the mask leaves:

    key_t   = K[token_t],                value_t = V[token_t] + 0.01 · position_t        [heads, size]
    seen_t  = Σ_{u <= t, mask_u = 1} key_u ∘ value_u
    logits_t = Σ_layers seen_t · H                                                        [vocabulary]

The sum runs over past and new tokens together, so a cache that is lost, doubled or padded wrongly changes every
logit after it. `reference_logits` computes the same with numpy and without any cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

LAYERS, HEADS, SIZE, VOCABULARY = 2, 2, 3, 17
TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
}  # fmt: skip


def weights(vocabulary: int = VOCABULARY) -> dict[str, NDArray[np.float32]]:
    """K, V [vocabulary, heads·size] and H [heads·size, vocabulary] of each layer."""
    rng = np.random.default_rng(0)
    made = {}
    for layer in range(LAYERS):
        made[f"K{layer}"] = rng.normal(size=(vocabulary, HEADS * SIZE)).astype(np.float32)
        made[f"V{layer}"] = rng.normal(size=(vocabulary, HEADS * SIZE)).astype(np.float32)
        made[f"H{layer}"] = rng.normal(size=(HEADS * SIZE, vocabulary)).astype(np.float32)
    return made


def reference_logits(ids: Sequence[int]) -> NDArray[np.float64]:
    """Logits [length, vocabulary] of one sequence without padding, in fp64."""
    made = {name: value.astype(np.float64) for name, value in weights().items()}
    positions = np.arange(len(ids))[:, None]
    logits = np.zeros((len(ids), VOCABULARY))
    for layer in range(LAYERS):
        products = made[f"K{layer}"][list(ids)] * (made[f"V{layer}"][list(ids)] + 0.01 * positions)
        logits += products.cumsum(axis=0) @ made[f"H{layer}"]
    return logits


def reference_greedy(ids: Sequence[int], new: int) -> list[int]:
    """Greedy tokens, every step from the beginning."""
    row = list(ids)
    for _ in range(new):
        row.append(int(reference_logits(row)[-1].argmax()))
    return row[len(ids) :]


def causal_model(
    *,
    dtype: str = "float32",
    cache_dtype: str | None = None,
    logits_dtype: str = "float32",
    opset: int = 17,
    vocabulary: int = VOCABULARY,
) -> onnx.ModelProto:
    """The model above; the cache may be kept, and logits given, in another dtype than they are computed in."""
    kind, kept_kind, logits_kind = TYPES[dtype], TYPES[cache_dtype or dtype], TYPES[logits_dtype]
    nodes, inputs, outputs, kept = [], [], [], []
    cast = {"to": kind}

    def node(operator: str, sources: list[str], target: str, **attributes: object) -> None:
        nodes.append(helper.make_node(operator, sources, [target], name=f"node_{target}", **attributes))

    # Mask and positions, [batch, 1, length, 1], of the past and the new tokens, and of the new ones.
    node("Cast", ["attention_mask"], "mask_cast", **cast)
    node("Unsqueeze", ["mask_cast", "axes_mask"], "mask")
    node("Cast", ["position_ids"], "position_cast", **cast)
    node("Mul", ["position_cast", "hundredth"], "position_scaled")
    node("Unsqueeze", ["position_scaled", "axes_token"], "position")
    node("Shape", ["input_ids"], "shape")
    node("Slice", ["shape", "one", "two"], "new")
    node("Neg", ["new"], "new_back")
    for layer in range(LAYERS):
        node("Gather", [f"K{layer}", "input_ids"], f"key_flat{layer}")
        node("Gather", [f"V{layer}", "input_ids"], f"value_raw{layer}")
        node("Add", [f"value_raw{layer}", "position"], f"value_flat{layer}")
        for part in ("key", "value"):
            node("Reshape", [f"{part}_flat{layer}", "split"], f"{part}_split{layer}")
            node("Transpose", [f"{part}_split{layer}"], f"{part}_new{layer}", perm=[0, 2, 1, 3])
            past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            node("Cast", [f"{part}_new{layer}"], f"{part}_kept{layer}", to=kept_kind)
            node("Concat", [past, f"{part}_kept{layer}"], present, axis=2)
            node("Cast", [present], f"{part}_all{layer}", **cast)
            inputs.append(helper.make_tensor_value_info(past, kept_kind, ["batch", HEADS, "past", SIZE]))
            outputs.append(helper.make_tensor_value_info(present, kept_kind, ["batch", HEADS, "total", SIZE]))
        node("Mul", [f"key_all{layer}", f"value_all{layer}"], f"product{layer}")
        node("Mul", [f"product{layer}", "mask"], f"masked{layer}")
        node("CumSum", [f"masked{layer}", "two_scalar"], f"seen_all{layer}")
        node("Slice", [f"seen_all{layer}", "new_back", "far", "two"], f"seen{layer}")
        node("Transpose", [f"seen{layer}"], f"seen_back{layer}", perm=[0, 2, 1, 3])
        node("Reshape", [f"seen_back{layer}", "join"], f"seen_flat{layer}")
        node("MatMul", [f"seen_flat{layer}", f"H{layer}"], f"part{layer}")
    node("Add", ["part0", "part1"], "summed")
    node("Cast", ["summed"], "logits", to=logits_kind)

    constants = {
        "axes_mask": np.array([1, 3]), "axes_token": np.array([2]), "one": np.array([1]), "two": np.array([2]),
        "two_scalar": np.array(2), "far": np.array([2**62]), "split": np.array([0, 0, HEADS, SIZE]),
        "join": np.array([0, 0, HEADS * SIZE]), "hundredth": np.array(0.01).astype(dtype),
    }  # fmt: skip
    kept += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    kept += [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights(vocabulary).items()]
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", axis])
        for name, axis in (("input_ids", "new"), ("attention_mask", "total"), ("position_ids", "new"))
    ]
    logits = helper.make_tensor_value_info("logits", logits_kind, ["batch", "new", vocabulary])
    graph = helper.make_graph(nodes, "toy", [*tokens, *inputs], [logits, *outputs], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Save with every tensor in `weights.data` beside the graph."""
    path = folder / name
    onnx.save_model(
        model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location="weights.data",
        size_threshold=128, convert_attribute=True,
    )  # fmt: skip
    return path


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Save with everything in one file, unchecked, as the hostile ones need it."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def rewritten_entry(path: Path, key: str, value: str | None) -> None:
    """Give every external tensor of a saved graph another entry, or take the entry away."""
    model = onnx.load_model(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            continue
        kept = [(entry.key, entry.value) for entry in tensor.external_data if entry.key != key]
        del tensor.external_data[:]
        for pair in kept if value is None else [*kept, (key, value)]:
            entry = tensor.external_data.add()
            entry.key, entry.value = pair
    path.write_bytes(model.SerializeToString())
