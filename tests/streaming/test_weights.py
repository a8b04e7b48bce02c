"""A stream of weights gives what the formula gives, written out here for whole arrays, whatever the layout."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.commands.bake import bake
from alignez_bake.integrity.hashing import ALGORITHMS, hash_file, hash_tensor
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.streaming import resources, weights
from tests.baking import contents, lowered, plan_for
from tests.streaming.streamed_bakes import SHARDED, small_blocks

BF16 = np.dtype(ml_dtypes.bfloat16)
MANTISSA = {BF16: 7, np.dtype(np.float16): 10}
# Of the smallest exponents: below, the spacing stays what it is.
SMALLEST = {BF16: -126, np.dtype(np.float16): -14}
RANK = 2


@dataclass(frozen=True)
class Where:
    """A tensor that an edit changes.

    Attributes:
        axis: of its outputs.
        rows: of them, those that belong to the site; all where None.
        constant: whether it takes L s + c: biases, and embeddings.
    """

    axis: int = 0
    rows: slice | None = None
    constant: bool = False


BIAS, CONV = Where(-1, constant=True), Where(-1)
LAYOUTS = {
    "plain": ("llama", True, "attn_write", {"self_attn.o_proj.weight": Where(), "self_attn.o_proj.bias": BIAS}),
    "mlp": ("llama", True, "mlp_write", {"mlp.down_proj.weight": Where(), "mlp.down_proj.bias": BIAS}),
    "Conv1D": ("gpt2", True, "attn_write", {"attn.c_proj.weight": CONV, "attn.c_proj.bias": BIAS}),
    "fused": ("phi3", False, "mlp_gate", {"mlp.gate_up_proj.weight": Where(rows=slice(0, 64))}),
    "stacked experts": (
        "gpt_oss",
        True,
        "mlp_write",
        {"mlp.experts.down_proj": CONV, "mlp.experts.down_proj_bias": BIAS},
    ),
    "single experts": ("mixtral", False, "mlp_write", {".w2.weight": Where()}),
}  # fmt: skip


def formula(values, edit, where):
    """y + L (Rᵀ y + s) + c along the axis of outputs, in float64; s and c only where there are constants."""
    moved = np.moveaxis(values.astype(np.float64), where.axis, -1)
    chosen = moved if where.rows is None else moved[..., where.rows]
    read = chosen @ edit.right
    constant = np.zeros(edit.left.shape[0])
    if where.constant:
        read = read if edit.offset is None else read + edit.offset
        constant = constant if edit.bias is None else constant + edit.bias
    changed = chosen + edit.strength * (read @ edit.left.T + constant)
    result = moved.copy()
    result[... if where.rows is None else (..., where.rows)] = changed
    return np.moveaxis(result, -1, where.axis)


def magnitude(values, edit, where):
    """|W| + |L| |Rᵀ| |W| and the same of constants: what the rounding of float32 is measured by."""
    moved = np.moveaxis(np.abs(values.astype(np.float64)), where.axis, -1)
    chosen = moved if where.rows is None else moved[..., where.rows]
    read = chosen @ np.abs(edit.right) + (0 if edit.offset is None else np.abs(edit.offset))
    total = chosen + read @ np.abs(edit.left).T + (0 if edit.bias is None else np.abs(edit.bias))
    result = moved.copy()
    result[... if where.rows is None else (..., where.rows)] = total
    return np.moveaxis(result, -1, where.axis)


def check_stored(stored, exact, slack):
    """Rounded once: exactly so of float32, within 1e-12 in float64, and in 16 bits but for what float32 blurs."""
    if stored.dtype == np.float64:
        assert np.abs(stored - exact).max() <= 1e-12 * np.abs(exact).max()
    elif stored.dtype == np.float32:
        np.testing.assert_array_equal(stored, exact.astype(np.float32))
    else:
        exponents = np.maximum(np.frexp(exact)[1] - 1, SMALLEST[stored.dtype])
        spacing = np.ldexp(1.0, exponents - MANTISSA[stored.dtype])
        assert (np.abs(stored.astype(np.float64) - exact) <= spacing / 2 + slack).all()


def check_result(base, plan, out, edited, dtype=None):
    """Every tensor; returns how many were edited."""
    before, after = open_model_folder(base).tensors, open_model_folder(out).tensors
    assert list(before.names()) == list(after.names())
    count = 0
    for name in before.names():
        old, new = before.read(name), after.read(name)
        assert new.dtype == (dtype or old.dtype)
        where = next((where for suffix, where in edited.items() if name.endswith(suffix)), None)
        if where is None:
            assert new.tobytes() == old.astype(new.dtype).tobytes(), name
            continue
        count += 1
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        edit = next(edit for edit in plan.edits if edit.site.layer in (None, *numbers[:1]))
        exact = formula(old, edit, where)
        # Roundings of A, of B, of k products and their sum, and of W + ΔW; A is itself a sum in float64.
        slack = (RANK + 3) * 2.0**-24 * magnitude(old, edit, where)
        assert np.linalg.norm(exact - old.astype(np.float64)) > 0.01 * np.linalg.norm(old.astype(np.float64)), name
        check_stored(new, exact, slack)
    assert count
    return count


def in_dtypes(base, choose):
    """Write each shard anew with each tensor in the dtype that `choose(name)` says."""
    tensors = open_model_folder(base).tensors
    for file in tensors.files:
        entries = tensors.header(file).entries
        values = {name: tensors.read(name).astype(choose(name)) for name in entries}
        write_tensors(base / file, values, {"format": "pt"})
    if (index := base / "model.safetensors.index.json").exists():
        size = sum(read_header(base / file).data_bytes for file in tensors.files)
        text = json.loads(index.read_text())
        index.write_text(json.dumps(text | {"metadata": {**text["metadata"], "total_size": size}}))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    small_blocks(monkeypatch)


@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_every_dtype(layout, dtype, row_backend, tmp_path, save_tiny):
    model_type, bias, kind, edited = LAYOUTS[layout]
    base = save_tiny(model_type, tmp_path / "base", bias=bias, max_shard_size=SHARDED)
    in_dtypes(base, lambda name: dtype)
    plan = plan_for(base, (kind,), constant=any(where.constant for where in edited.values()))
    bake(base, plan, tmp_path / "out", rounding="nearest")
    experts = 4 if layout == "single experts" else 1
    assert check_result(base, plan, tmp_path / "out", edited) == 2 * experts * len(edited)


def test_an_embedding_takes_the_constant_too(tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base", overrides={"tie_word_embeddings": False})
    plan = plan_for_embedding(base)
    bake(base, plan, tmp_path / "out")
    assert check_result(base, plan, tmp_path / "out", {"embed_tokens.weight": Where(-1, constant=True)}) == 1


def plan_for_embedding(base):
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.site import Site
    from tests.random_edits import random_edit

    folder = open_model_folder(base)
    return EditPlan((random_edit(Site("embed", None), 32, 32, constant=True),), base=folder.fingerprint)


MIXED = {
    "layers.0.self_attn.o_proj.weight": np.float64,
    "layers.1.self_attn.o_proj.weight": BF16,
    "layers.0.self_attn.o_proj.bias": np.float16,
    "norm.weight": np.float32,
}


def mixed(name):
    return next((dtype for suffix, dtype in MIXED.items() if name.endswith(suffix)), np.float16)


@pytest.fixture
def mixed_base(tmp_path, save_tiny):
    """All four dtypes in each of several files."""
    base = save_tiny("llama", tmp_path / "base", bias=True, max_shard_size=SHARDED)
    in_dtypes(base, mixed)
    return base


EDITED = LAYOUTS["plain"][3]


def test_four_dtypes_in_one_model(mixed_base, tmp_path):
    plan = plan_for(mixed_base, constant=True)
    bake(mixed_base, plan, tmp_path / "out", rounding="nearest")
    assert check_result(mixed_base, plan, tmp_path / "out", EDITED) == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_another_dtype_for_all(dtype, row_backend, mixed_base, tmp_path):
    plan = plan_for(mixed_base, constant=True)
    bake(mixed_base, plan, tmp_path / "out", dtype=dtype, rounding="nearest")
    wanted = BF16 if dtype == "bfloat16" else np.dtype(dtype)
    assert check_result(mixed_base, plan, tmp_path / "out", EDITED, wanted) == 4


def test_the_number_of_workers_changes_nothing(row_backend, mixed_base, tmp_path, monkeypatch):
    plan, results = plan_for(mixed_base, ("attn_write", "mlp_write"), constant=True), []
    for workers in (1, 2, 7):
        monkeypatch.setattr(weights, "worker_count", lambda workers=workers: workers)
        (tmp_path / str(workers)).mkdir()
        results.append(contents(bake(mixed_base, plan, tmp_path / str(workers) / "out").path))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hashes_that_are_noted_are_those_of_the_files(algorithm, dtype, mixed_base, tmp_path):
    base, out = open_model_folder(mixed_base), tmp_path / "out"
    (out / "alignez").mkdir(parents=True)
    plan = plan_for(base, constant=True)
    settings = ExportSettings(dtype, "base", hash_algorithm=algorithm)
    exported = CheckpointExporter().export(base, lowered(base, plan), out, settings, NoProgress())
    assert [file.name for file in exported.written] == list(base.tensors.files)
    result, seen = open_model_folder(out).tensors, []
    for file in exported.written:
        assert (file.size, file.hash) == hash_file(out / file.name, algorithm)
        assert file.base_hash == hash_file(mixed_base / file.name, algorithm)[1]
        for tensor in file.tensors:
            seen.append(tensor.name)
            header, of_base = result.header(file.name), base.tensors.header(file.name)
            assert tensor.hash == hash_tensor(header, header.entries[tensor.name], algorithm)
            assert tensor.base_hash == hash_tensor(of_base, of_base.entries[tensor.name], algorithm)
            assert tensor.hash != tensor.base_hash
    assert sorted(seen) == sorted(f"model.layers.{n}.self_attn.o_proj.{p}" for n in (0, 1) for p in ("bias", "weight"))


def odd_header(path):
    """The same file with other spaces, metadata, and the keys in another order."""
    header = read_header(path)
    entries = json.loads(header.header_bytes)
    entries["__metadata__"] = {"format": "pt", "made by": "hand"}
    text = json.dumps(dict(reversed(entries.items())), indent=1).encode() + b" " * 37
    data = path.read_bytes()[header.data_offset :]
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return text


def test_names_order_metadata_padding_and_other_files_stay(tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base", max_shard_size=SHARDED)
    tensors = open_model_folder(base).tensors
    last = tensors.files[-1]
    extra = {"mtp.layers.0.weight": np.arange(300, dtype=np.int64), "vision.scale": np.float32([[7.5]])}
    values = {name: tensors.read(name) for name in tensors.header(last).entries}
    write_tensors(base / last, {**values, **extra}, {"format": "pt"})
    index = base / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    entries["weight_map"] |= dict.fromkeys(extra, last)
    index.write_text(json.dumps(entries))
    headers = {file: odd_header(base / file) for file in tensors.files}
    (base / "LICENSE").write_text("free")
    (base / "custom" / "deep").mkdir(parents=True)
    (base / "custom" / "deep" / "code.py").write_text("1")
    bake(base, plan_for(base), tmp_path / "out")
    out = tmp_path / "out"
    assert {file: read_header(out / file).header_bytes for file in tensors.files} == headers
    assert sorted(path.name for path in out.glob("*.safetensors")) == sorted(tensors.files)
    assert check_result(base, plan_for(base), out, EDITED) == 2
    assert json.loads((out / index.name).read_text())["weight_map"] == entries["weight_map"]
    copied = ("LICENSE", "custom/deep/code.py", "generation_config.json", "tokenizer.json", "config.json")
    assert {name: (out / name).read_bytes() for name in copied} == {name: (base / name).read_bytes() for name in copied}


def test_buffers_end_with_the_stream(tmp_path, save_tiny, monkeypatch):
    """Nothing that holds itself holds them: what is done after the weights would come on top of their memory."""
    made = []

    class Known(resources.Buffers):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(resources, "Buffers", Known)
    base = open_model_folder(save_tiny("llama", tmp_path / "base", max_shard_size=SHARDED))
    gc.collect()
    gc.disable()
    try:
        (tmp_path / "out").mkdir()
        CheckpointExporter().export(
            base, lowered(base, plan_for(base)), tmp_path / "out", ExportSettings(), NoProgress()
        )
        assert [buffers() for buffers in made] == [None]
    finally:
        gc.enable()
