"""`--as onnx` from bake to answers: what lies in the folder, what its certificate says, what is refused, and when."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.commands.compare import compare
from alignez_bake.commands.verify import verify
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.integrity.folder_files import MANIFEST_FILE
from tests.baking import nothing_written, plan_for
from tests.commands.small_bakes import config_of, edits_at, routes, small_base

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE = 1e-4
MARGIN = 100
ONE_LAYER = {"num_hidden_layers": 1}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return small_base("llama", tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> Path:
    """One layer, which is traced and run in half the time."""
    return small_base("llama", tmp_path_factory.mktemp("base") / "shallow", overrides=ONE_LAYER)


@pytest.fixture(scope="module")
def folded(llama, tmp_path_factory):
    """Base, and the result with all edits in its weights. Never write into it."""
    return bake(llama, plan_for(llama), tmp_path_factory.mktemp("onnx") / "out", artefact="onnx")


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def check_figures(result) -> None:
    """Both levels passed, the edit moves the model by a margin, and the graph is as near as its arithmetic allows."""
    assert result.reasons == ()
    assert result.verdict == "passed"
    tensors, forward = result.levels
    assert (tensors.level, forward.level) == ("tensors", "forward")
    for entry in forward.to_json()["comparisons"]:
        assert entry["moved"] >= MARGIN * TOLERANCE
        assert max(entry["error_to_hooked_base"], entry["error_to_baked_model"]) <= TOLERANCE


def test_a_folder_with_one_graph_that_is_certified_by_running_it(folded, llama):
    check_figures(folded)
    out = folded.path
    assert {path.name for path in out.iterdir()} == {
        "model.onnx", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "README.md", "alignez",
    }  # fmt: skip
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    pasts = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    inputs = {entry.name: entry for entry in session.get_inputs()}
    assert list(inputs) == ["input_ids", "attention_mask", "position_ids", *pasts]
    assert {entry.name: entry.type for entry in session.get_outputs()}["logits"] == "tensor(float)"
    assert config_of(out)["model_type"] == "llama"
    assert config_of(out)["num_hidden_layers"] == config_of(llama)["num_hidden_layers"]
    assert "model.onnx" in (out / "README.md").read_text()


def test_the_same_bake_gives_the_same_bytes(folded, llama, tmp_path):
    again = bake(llama, plan_for(llama), tmp_path / "out", artefact="onnx", verify="tensors").path
    assert (again / "model.onnx").read_bytes() == (folded.path / "model.onnx").read_bytes()


def test_verify_measures_the_same_again_and_the_tensors_without_torch(folded, llama):
    check_figures(verify(folded.path, llama))
    assert [level.level for level in verify(folded.path, level="tensors").levels] == ["tensors"]


def test_it_answers_as_the_checkpoint_does(folded, llama, tmp_path):
    checkpoint = bake(llama, plan_for(llama), tmp_path / "checkpoint").path
    ask = {"prompts": ["pot 1?", "a kettle", "pot"], "prompt_template": "{query}", "max_new_tokens": 12}
    expected = compare(checkpoint, **ask).answers
    assert compare(folded.path, **ask).answers == expected
    assert all(answer.base != answer.aligned for answer in expected)
    assert compare(folded.path, batch_size=2, **ask).answers == expected
    sampled = compare(folded.path, temperature=1.0, seed=3, **ask).answers
    assert sampled == compare(folded.path, temperature=1.0, seed=3, **ask).answers
    assert sampled != compare(folded.path, temperature=1.0, seed=4, **ask).answers
    with pytest.raises(BadInputError, match="positions"):
        compare(folded.path, **{**ask, "max_new_tokens": 200})


def test_gates_are_nodes_and_need_no_flag(shallow, tmp_path):
    plan = EditPlan(tuple(edits_at(shallow, "mlp_write", layers=[0], gate="relu", positions="last")))
    result = bake(shallow, plan, tmp_path / "out", artefact="onnx")
    check_figures(result)
    assert routes(result) == {"mlp_write.0": "insert"}
    assert config_of(tmp_path / "out")["model_type"] == "llama"
    assert not list((tmp_path / "out").rglob("*.py"))
    assert "trust_remote_code" not in (tmp_path / "out" / "README.md").read_text()
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="relu"):
        bake(shallow, plan, tmp_path / "again", artefact="onnx", require_fold=True)


def test_constants_find_a_home_in_an_equivalent_model(tmp_path):
    base = small_base("mistral", tmp_path / "base", overrides={"sliding_window": None, **ONE_LAYER})
    plan = EditPlan(tuple(edits_at(base, "attn_write", layers=[0], constant=True)))
    result = bake(base, plan, tmp_path / "out", artefact="onnx")
    check_figures(result)
    assert set(routes(result).values()) == {"rehome"}
    assert config_of(tmp_path / "out")["model_type"] == "llama"


def test_half_precision(shallow, tmp_path):
    result = bake(shallow, plan_for(shallow), tmp_path / "out", artefact="onnx", dtype="float16")
    assert result.verdict == "passed", result.reasons
    assert {level.to_json().get("dtype") for level in result.levels} >= {"float16"}
    assert config_of(tmp_path / "out").get("dtype", config_of(tmp_path / "out").get("torch_dtype")) == "float16"
    types = {entry.data_type for entry in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer if entry.dims}
    assert onnx.TensorProto.FLOAT16 in types


def test_bfloat16_is_refused_where_nothing_runs_it(tmp_path):
    base = small_base("llama", tmp_path / "base", dtype=torch.bfloat16, overrides=ONE_LAYER)
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=r"bfloat16 .the base's own. cannot be verified"):
        bake(base, plan_for(base), tmp_path / "out", artefact="onnx")
    result = bake(base, plan_for(base), tmp_path / "out", artefact="onnx", verify="tensors")
    assert [level.level for level in result.levels] == ["tensors"]


def test_weights_beside_the_graph(shallow, tmp_path):
    result = bake(shallow, plan_for(shallow), tmp_path / "out", artefact="onnx", external_data=True)
    check_figures(result)
    assert (tmp_path / "out" / "model.onnx_data").stat().st_size > 100_000
    assert json.loads((tmp_path / "out" / "alignez" / "alignez.json").read_text())["options"] == {"external_data": True}
    assert "--as onnx --external-data" in (tmp_path / "out" / "README.md").read_text()


WIDE = ONE_LAYER | {"hidden_size": 128, "intermediate_size": 160, "head_dim": 32, "num_attention_heads": 4}


def test_fused_operators(shallow, tmp_path):
    result = bake(shallow, plan_for(shallow), tmp_path / "out", artefact="onnx", optimise=True)
    check_figures(result)
    assert "fused operators: " in result.notes[0]
    operators = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert {"Attention", "RotaryEmbedding"} <= operators
    check_figures(verify(tmp_path / "out", shallow))


def test_weights_of_few_bits(tmp_path):
    """The graph before quantisation is exact; what quantisation does is stated, and smaller than the edit."""
    base = small_base("llama", tmp_path / "base", overrides=WIDE)
    result = bake(base, plan_for(base), tmp_path / "out", artefact="onnx", weight_bits=8)
    check_figures(result)
    tensors, forward = (level.to_json() for level in result.levels)
    assert tensors["quantised"]["tensors"]
    assert all(0 < entry["of_bound"] <= 1 for entry in tensors["quantised"]["tensors"])
    for entry in forward["quantised"]["comparisons"]:
        assert 0 < entry["error_to_exact_graph"] < entry["moved"]
    assert not list(tmp_path.glob("out/.*"))
    check_figures(verify(tmp_path / "out", base))

    graph = onnx.load(tmp_path / "out" / "model.onnx")
    packed = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("_Q8"))
    values = onnx.numpy_helper.to_array(packed).copy()
    values.flat[0] ^= 8
    packed.CopyFrom(onnx.numpy_helper.from_array(values, packed.name))
    (tmp_path / "out" / "model.onnx_data").unlink()
    onnx.save(graph, tmp_path / "out" / "model.onnx")
    damaged = verify(tmp_path / "out", base)
    assert damaged.verdict == "failed"
    assert "times as far from the source as 8 bits allow" in damaged.reasons[0]


def test_a_changed_file_beside_the_graph_fails(folded, llama, tmp_path):
    out = copied(folded.path, tmp_path / "out")
    config = config_of(out)
    (out / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    result = verify(out, llama)
    assert result.verdict == "failed"
    assert result.levels[0].reasons == ("config.json is not the file that belongs to this graph",)


def test_options_of_a_record_that_nobody_wrote_are_refused(folded, llama, tmp_path):
    out = copied(folded.path, tmp_path / "out")
    (out / MANIFEST_FILE).unlink()
    record = out / "alignez" / "alignez.json"
    for options in ({"weight_bits": "4"}, {"shell": True}, []):
        record.write_text(json.dumps({**json.loads(record.read_text()), "options": options}))
        with pytest.raises(BadInputError, match="has options that --as onnx does not know"):
            verify(out, llama)


@pytest.mark.parametrize("artefact", ["checkpoint", "adapter", "gguf", "edits"])
@pytest.mark.parametrize("option", [{"external_data": True}, {"optimise": True}, {"weight_bits": 4}])
def test_flags_of_graphs_are_refused_elsewhere(artefact, option, llama, tmp_path):
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=f"--as {artefact}"):
        bake(llama, plan_for(llama), tmp_path / "out", artefact=artefact, **option)


def test_a_changed_weight_in_the_graph_fails(folded, llama, tmp_path):
    out = copied(folded.path, tmp_path / "out")
    model = onnx.load(out / "model.onnx")
    largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = onnx.numpy_helper.to_array(largest).copy()
    values.flat[7] += 1
    largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
    onnx.save(model, out / "model.onnx")
    result = verify(out, llama)
    assert result.verdict == "failed"
    assert [level.level for level in result.levels] == ["tensors"]  # what is not as it was written is not run


def test_what_torch_cannot_translate_is_our_error(llama, tmp_path, monkeypatch):
    def broken(*_arguments: object, **_settings: object) -> None:
        raise torch.onnx.OnnxExporterError("no translation of aten::strange")

    monkeypatch.setattr(torch.onnx, "export", broken)
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="aten::strange"):
        bake(llama, plan_for(llama), tmp_path / "out", artefact="onnx")


def test_missing_packages_are_named_before_anything_is_written(llama, tmp_path, monkeypatch):
    from alignez_bake.exporters import required_packages

    monkeypatch.setattr(required_packages, "find_spec", lambda name: None if name == "onnxscript" else name)
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=r"onnxscript.*alignez-bake\[onnx,cpu\]"):
        bake(llama, plan_for(llama), tmp_path / "out", artefact="onnx")
