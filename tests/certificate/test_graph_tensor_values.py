"""Level `tensors` of graphs made by hand, which hold whatever they are told to."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.exporters.dtype import file_dtype
from onnx import TensorProto, helper, numpy_helper

from alignez_bake.certificate.graph_tensors import certify_graph_tensors
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.fold import EditedTensors
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.dtypes import cast_once, numpy_dtype_of
from tests.baking import lowered, plan_for
from tests.runtime.graphs import external, rewritten_entry, saved

EDITED = "model.layers.1.self_attn.o_proj.weight"
NORM = "model.norm.weight"


def tensors_of(base, lowering, dtype=None):
    """The baked checkpoint's tensors, as an exporter names them."""
    contents = checkpoint_contents(base, lowering)
    made = {}
    for name in contents.home.tensors:
        stored = file_dtype(dtype) or contents.home.tensors.entry(name).dtype
        if name in contents.edited:
            made[f"model.{name}"] = contents.edited.compute(name).rounded(stored)
        else:
            made[f"model.{name}"] = cast_once(contents.home.tensors.read(name), numpy_dtype_of(stored))
    return made


def model_of(tensors):
    """A graph with these initialisers, each of which a node uses."""
    nodes = [helper.make_node("Size", [name], [f"y{index}"]) for index, name in enumerate(tensors)]
    given = [helper.make_tensor_value_info(node.output[0], TensorProto.INT64, []) for node in nodes]
    made = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    graph = helper.make_graph(nodes, "g", [], given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def base(tiny_folder):
    return open_model_folder(tiny_folder("llama"))


@pytest.fixture
def lowering(base):
    return lowered(base, plan_for(base))


@pytest.fixture
def certify(tmp_path, base):
    """`certify(lowering, initialisers)`."""

    def certified(lowering, tensors, *, of=base, dtype=None):
        return certify_graph_tensors(
            of, lowering, saved(model_of(tensors), tmp_path), dtype=dtype, progress=NoProgress()
        )

    return certified


def test_a_graph_that_holds_the_checkpoint_passes(certify, base, lowering):
    found = certify(lowering, tensors_of(base, lowering))
    assert (found.verdict, found.reasons, found.untouched, found.others) == ("passed", (), 19, 0)


def test_zero_and_minus_zero_are_not_the_same_bits(certify, base, lowering):
    tensors = tensors_of(base, lowering)
    norm = tensors[f"model.{NORM}"]
    norm[3] = -norm[3]
    (reason,) = certify(lowering, tensors).reasons
    assert reason == f"{NORM}: initialiser model.{NORM} differs from the base's in 1 of 32 values"


def test_an_edited_tensor_that_is_missing_fails(certify, base, lowering):
    tensors = tensors_of(base, lowering)
    del tensors[f"model.{EDITED}"]
    found = certify(lowering, tensors)
    (reason,) = found.reasons
    assert found.verdict == "failed"
    assert reason == f"{EDITED}, which the edits change, is not in the graph: no initialiser has its name or its values"


def test_another_tensor_that_is_missing_is_not_comparable(certify, base, lowering):
    """A file may hold what no loader takes: mask buffers, drafts."""
    tensors = tensors_of(base, lowering)
    del tensors["model.model.layers.0.mlp.up_proj.weight"]
    found = certify(lowering, tensors)
    assert found.verdict == "passed"
    assert found.untouched == 18
    assert found.not_comparable == {"model.layers.0.mlp.up_proj.weight": "no initialiser has its name or its values"}


def test_a_tensor_under_a_name_of_its_own_is_found_by_its_values(certify, base, lowering):
    tensors = tensors_of(base, lowering)
    name = "model.model.layers.0.mlp.up_proj.weight"
    tensors["onnx::MatMul_7"] = tensors.pop(name).T.copy()
    assert certify(lowering, tensors).untouched == 19
    tensors["onnx::MatMul_7"][0, 0] += 1
    (reason,) = certify(lowering, tensors).reasons
    assert reason.endswith("is not in the graph: onnx::MatMul_7ᵀ differs from the base's in 1 of 2048 values")


def test_a_head_of_another_name_is_the_head(certify, tiny_folder):
    """gpt_neox's files call it embed_out."""
    base = open_model_folder(tiny_folder("gpt_neox"))
    lowering = lowered(base, plan_for(base, ("mlp_write",)))
    tensors = tensors_of(base, lowering)
    tensors["model.lm_head.weight"] = tensors.pop("model.embed_out.weight")
    assert certify(lowering, tensors, of=base).verdict == "passed"
    tensors["model.lm_head.weight"][2, 2] += 1
    (reason,) = certify(lowering, tensors, of=base).reasons
    assert reason.startswith("embed_out.weight: initialiser model.lm_head.weight differs")


def test_quantised_values_are_no_tensor(base, lowering, tmp_path):
    """Under a tensor's name, and elsewhere where a merged one would be looked for."""
    tensors = tensors_of(base, lowering)
    up, norm = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    for name in (up, norm, EDITED):
        del tensors[f"model.{name}"]
    model = model_of(tensors)
    for name, shape in ((f"model.{up}", [64, 32]), ("model.layers.7.x", [32]), (f"model.{EDITED}", [32, 32])):
        packed = bytes(shape[0] * (shape[1] if len(shape) > 1 else 1) // 2)
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT4, shape, packed, raw=True))
    found = certify_graph_tensors(base, lowering, saved(model, tmp_path), dtype=None, progress=NoProgress())
    what = "has data type number 22, whose values no array can hold"
    assert found.reasons == (f"{EDITED}, which the edits change, is not in the graph: model.{EDITED} {what}",)
    assert found.not_comparable == {up: f"model.{up} {what}", norm: "no initialiser has its name or its values"}


def test_equal_small_tensors_may_be_one(certify, base, lowering):
    tensors = tensors_of(base, lowering)
    tensors["val_3"] = tensors.pop(f"model.{EDITED}")
    assert certify(lowering, tensors).verdict == "passed"


def test_a_tensor_that_no_node_uses_fails(base, lowering, tmp_path):
    """It is there, but the nodes may take another."""
    model = model_of(tensors_of(base, lowering))
    (node,) = [node for node in model.graph.node if node.input[0] == f"model.{EDITED}"]
    node.input[0] = f"model.{NORM}"
    found = certify_graph_tensors(base, lowering, saved(model, tmp_path), dtype=None, progress=NoProgress())
    assert found.reasons == (f"{EDITED}: no node uses initialiser model.{EDITED}",)


def test_a_shape_of_its_own_fails(certify, base, lowering):
    tensors = tensors_of(base, lowering)
    tensors[f"model.{NORM}"] = tensors[f"model.{NORM}"].reshape(1, -1)
    (reason,) = certify(lowering, tensors).reasons
    assert reason == f"{NORM}: initialiser model.{NORM} has shape [1, 32], not [32]"


def test_large_initialisers_of_no_tensor_are_named(certify, base, lowering):
    tensors = tensors_of(base, lowering) | {
        "table": np.zeros((64, 65), np.float32),
        "few": np.zeros((64, 64), np.float32),
    }
    found = certify(lowering, tensors)
    assert (found.verdict, found.others, found.large_others) == ("passed", 2, ("table",))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_dtype_that_was_asked_for_is_that_of_the_values(certify, base, dtype):
    lowering = lower(plan_for(base, scale=4.0), base, CheckpointExporter(), dtype=file_dtype(dtype))
    tensors = tensors_of(base, lowering, dtype)
    assert certify(lowering, tensors, dtype=dtype).verdict == "passed"
    wider = {name: values.astype(np.float64) for name, values in tensors.items()}
    assert certify(lowering, wider, dtype=dtype).verdict == "passed"
    found = certify(lowering, tensors_of(base, lowering), dtype=dtype)
    # What is float32 in the base is the same values in float64, but for the edits.
    assert len(found.reasons) == (2 if dtype == "float64" else 21)
    what = "differs from the formula's" if dtype == "float64" else f"holds float32 values that are no {dtype} ones"
    assert what in found.reasons[-1]


def test_a_graph_in_a_narrower_dtype_than_was_asked_for_fails(certify, base, lowering):
    found = certify(lowering, {name: values.astype(np.float16) for name, values in tensors_of(base, lowering).items()})
    assert len(found.reasons) == 21
    assert "differs from" in found.reasons[0]


def test_a_loader_casts_to_the_dtype_of_the_config(certify, tmp_path, save_tiny):
    """Files may hold a norm in float32 where config.json says bfloat16: the model then has it in bfloat16."""
    base = open_model_folder(save_tiny("llama", tmp_path / "base"))
    config = (base.path / "config.json").read_text().replace('"float32"', '"bfloat16"')
    (base.path / "config.json").write_text(config)
    base = open_model_folder(base.path)
    lowering = lowered(base, plan_for(base, scale=4.0))
    tensors = tensors_of(base, lowering)
    loaded = {name: cast_once(values, np.dtype(ml_dtypes.bfloat16)) for name, values in tensors.items()}
    assert certify(lowering, loaded, of=base).verdict == "passed"
    assert certify(lowering, tensors, of=base).verdict == "passed"


def test_rounding_that_eats_an_edit_fails(certify, tmp_path, save_tiny):
    base = open_model_folder(save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16))
    lowering = lowered(base, plan_for(base, scale=1e-3))
    found = certify(lowering, tensors_of(base, lowering), of=base)
    (reason,) = found.reasons
    assert "rounding ate the edit in 2 tensor(s), lowest delivered share" in reason
    assert found.lowest_share < 0.9


def test_edits_that_change_nothing_are_inconclusive(certify, base):
    lowering = lowered(base, EditPlan(tuple(edit.scaled(0.0) for edit in plan_for(base).edits)))
    found = certify(lowering, tensors_of(base, lowering))
    assert found.verdict == "inconclusive"
    assert found.lowest_share is None


@pytest.mark.parametrize("location", ["../weights.data", "/etc/passwd"])
def test_data_out_of_the_folder_are_not_opened(base, lowering, tmp_path, location):
    path = external(model_of(tensors_of(base, lowering)), tmp_path)
    rewritten_entry(path, "location", location)
    with pytest.raises(BadInputError, match="only a file in the model's own folder is opened"):
        certify_graph_tensors(base, lowering, path, dtype=None, progress=NoProgress())


def test_a_shape_beyond_its_data_is_refused(base, lowering, tmp_path):
    path = external(model_of(tensors_of(base, lowering)), tmp_path)
    model = onnx.load(path, load_external_data=False)
    next(tensor for tensor in model.graph.initializer if tensor.external_data).dims[0] = 2**50
    with pytest.raises(BadInputError, match="bytes for its shape"):
        certify_graph_tensors(base, lowering, saved(model, tmp_path), dtype=None, progress=NoProgress())


def test_an_unknown_dtype_is_refused(certify, base, lowering):
    with pytest.raises(BadInputError, match="--dtype 'int8' is unknown"):
        certify(lowering, tensors_of(base, lowering), dtype="int8")


def test_one_tensor_is_in_memory_at_a_time(certify, base, lowering, monkeypatch):
    """Of the edited ones, whose base and formula are in float64."""
    alive, most = [], []
    compute = EditedTensors.compute

    def counted(self, name):
        made = compute(self, name)
        alive.append(weakref.ref(made.exact))
        most.append(sum(entry() is not None for entry in alive))
        return made

    tensors = tensors_of(base, lowering)
    monkeypatch.setattr(EditedTensors, "compute", counted)
    assert certify(lowering, tensors).verdict == "passed"
    assert most == [1, 1]


def test_neither_torch_nor_a_runtime_is_needed(base, lowering, tmp_path):
    path = external(model_of(tensors_of(base, lowering)), tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from alignez_bake.certificate.graph_tensors import certify_graph_tensors\n"
        "from alignez_bake.model_folder import open_model_folder\n"
        "from alignez_bake.progress import NoProgress\n"
        "from tests.baking import lowered, plan_for\n"
        f"base = open_model_folder(Path({str(base.path)!r}))\n"
        f"found = certify_graph_tensors(base, lowered(base, plan_for(base)), Path({str(path)!r}), dtype=None, "
        "progress=NoProgress())\n"
        "print(found.verdict, {'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "passed set()"), done.stderr
