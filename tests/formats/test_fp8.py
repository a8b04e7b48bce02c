"""FP8 bases with a scale a block: edited matrices become bfloat16, everything else stays."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config

from alignez_bake.commands.bake import bake
from alignez_bake.commands.restore import restore
from alignez_bake.commands.verify import verify
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.integrity.hashing import hash_file
from alignez_bake.integrity.manifest import read_manifest
from alignez_bake.language_model.loading import load_model
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.dequantised import DequantisedTensors
from alignez_bake.safetensors_io.dtypes import cast_once
from alignez_bake.safetensors_io.reader import open_folder
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.site import Site
from tests.baking import command, contents, nothing_written, plan_for
from tests.fp8_models import change_config, dequantised, save_fp8
from tests.random_edits import edit_for_slot

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("attn_write", "mlp_write")
BLOCKS = [(16, 16), (24, 20), (128, 128)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model without a list of what is not converted, as DeepSeek-V3 is released."""
    return save_fp8("qwen3", tmp_path_factory.mktemp("fp8") / "base", max_shard_size="20KB")


@pytest.fixture(scope="module")
def plan(base: Path) -> EditPlan:
    """Edits of the first layer alone, so that the other one must stay as it is."""
    model = open_model_folder(base, fp8=True)
    edits = [edit_for_slot(find_slot(model, Site(kind, 0))) for kind in KINDS]
    return EditPlan(tuple(edits), base=model.fingerprint)


@pytest.fixture(scope="module")
def baked(base: Path, plan: EditPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baked") / "out"
    result = bake(base, plan, out, reversible=True)
    assert result.verdict == "passed"
    assert {entry.name for entry in result.levels[0].deliveries} == set(edited_names())  # type: ignore[attr-defined]
    return out


def edited_names() -> list[str]:
    return ["model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"]


@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("block", BLOCKS)
def test_values_are_codes_times_scales(tmp_path: Path, block: tuple[int, int], scale_dtype: Any) -> None:
    path = save_fp8("llama", tmp_path / "base", block=block, scale_dtype=scale_dtype)
    model = open_model_folder(path, fp8=True)
    assert model.fp8_blocks is not None
    view = DequantisedTensors(model.tensors, model.fp8_blocks)
    for name in (name for name in model.tensors if f"{name}_scale_inv" in model.tensors):
        expected = dequantised(model.tensors.read(name), model.tensors.read(f"{name}_scale_inv"), block)
        assert view.entry(name).dtype == "F64"
        np.testing.assert_array_equal(view.read(name), expected)
        rows = len(expected)
        for first, end in ((0, 1), (3, rows - 2), (15, min(17, rows)), (rows - 1, rows), (5, 5)):
            np.testing.assert_array_equal(view.read_rows(name, first, end), expected[first:end])


def test_transformers_reads_the_same_numbers(base: Path) -> None:
    """Its own dequantisation, in the float32 that it computes in."""
    loaded = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 16))
    )
    model = open_model_folder(base, fp8=True)
    assert model.fp8_blocks is not None
    view = DequantisedTensors(model.tensors, model.fp8_blocks)
    for name in edited_names():
        theirs = loaded.get_parameter(name).detach().numpy()
        np.testing.assert_array_equal(theirs, view.read(name).astype(np.float32))


def test_an_edited_matrix_is_the_formula_rounded_once(base: Path, plan: EditPlan, baked: Path) -> None:
    tensors, result = open_folder(base), open_folder(baked)
    for edit, name in zip(plan.edits, reversed(edited_names()), strict=True):
        weight = dequantised(tensors.read(name), tensors.read(f"{name}_scale_inv"), (16, 16))
        assert edit.left is not None
        assert edit.right is not None
        left, right = edit.left.astype(np.float64), edit.right.astype(np.float64)
        exact = weight + edit.strength * left @ (right.T @ weight)
        assert result.entry(name).dtype == "BF16"
        moved = np.linalg.norm(exact - weight) / np.linalg.norm(weight)
        assert moved > 100 * 2.0**-8
        np.testing.assert_array_equal(result.read(name), cast_once(exact, np.dtype(ml_dtypes.bfloat16)))


def test_everything_else_is_the_base_byte_for_byte(base: Path, baked: Path) -> None:
    tensors, result = open_folder(base), open_folder(baked)
    scales = {f"{name}_scale_inv" for name in edited_names()}
    assert set(result) == set(tensors) - scales
    assert any(tensors.entry(name).dtype == "F8_E4M3" for name in result if name not in edited_names())
    for name in set(result) - set(edited_names()):
        assert result.file_of(name) == tensors.file_of(name)
        assert (result.entry(name).dtype, result.entry(name).shape) == (
            tensors.entry(name).dtype,
            tensors.entry(name).shape,
        )
        assert b"".join(result.iter_blocks(name)) == b"".join(tensors.iter_blocks(name))
    was, now = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (base, baked))
    added = now["quantization_config"].pop("modules_to_not_convert")
    assert now == was
    assert added == ["lm_head", "model.embed_tokens", *(name.removesuffix(".weight") for name in edited_names())]


def test_the_index_follows(base: Path, baked: Path) -> None:
    index = json.loads((baked / "model.safetensors.index.json").read_text(encoding="utf-8"))
    result = open_folder(baked)
    assert len(result.files) > 1
    assert index["weight_map"] == {name: result.file_of(name) for name in result.names()}
    assert index["metadata"]["total_size"] == sum(result.header(file).data_bytes for file in result.files)
    assert open_folder(base).files == result.files


def test_the_manifest_has_hashes_of_the_base(base: Path, baked: Path) -> None:
    manifest = read_manifest(baked)
    for file in open_folder(base).files:
        assert manifest.files[file].base_hash == hash_file(base / file, manifest.algorithm)[1]
        assert manifest.files[file].hash == hash_file(baked / file, manifest.algorithm)[1]


def test_transformers_takes_exactly_the_edited_modules_for_unconverted(base: Path, baked: Path) -> None:
    """As its quantiser does on a GPU: the module tree, without values."""
    from transformers.integrations.finegrained_fp8 import FP8Linear
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    converted = []
    for folder in (base, baked):
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        settings = FineGrainedFP8Config(**{k: v for k, v in config.quantization_config.items() if k != "fmt"})
        FineGrainedFP8HfQuantizer(settings, pre_quantized=True)._process_model_before_weight_loading(model)
        converted.append({name for name, module in model.named_modules() if isinstance(module, FP8Linear)})
    before, after = converted
    assert before - after == {name.removesuffix(".weight") for name in edited_names()}
    assert after < before
    codes = {
        name.removesuffix(".weight") for name in open_folder(baked) if open_folder(baked).entry(name).dtype == "F8_E4M3"
    }
    assert after == codes


def test_transformers_loads_the_result(baked: Path) -> None:
    _, info = AutoModelForCausalLM.from_pretrained(
        baked,
        dtype=torch.bfloat16,
        output_loading_info=True,
        quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 16)),
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers"])
def test_a_list_that_is_there_is_added_to(tmp_path: Path, key: str) -> None:
    path = save_fp8("llama", tmp_path / "base", not_converted=["lm_head"], list_key=key)
    assert bake(path, plan_for(open_model_folder(path, fp8=True)), tmp_path / "out").verdict == "passed"
    quantization = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    edited = [f"model.layers.{layer}.self_attn.o_proj" for layer in range(2)]
    assert quantization[key] == ["lm_head", *edited]


def test_two_lists_are_both_added_to(tmp_path: Path) -> None:
    path = save_fp8("llama", tmp_path / "base", not_converted=["lm_head"])
    quantization = json.loads((path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    change_config(path, {"quantization_config": {**quantization, "ignored_layers": ["other"]}})
    assert bake(path, plan_for(open_model_folder(path, fp8=True)), tmp_path / "out").verdict == "passed"
    found = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    edited = [f"model.layers.{layer}.self_attn.o_proj" for layer in range(2)]
    assert found["modules_to_not_convert"] == ["lm_head", *edited]
    assert found["ignored_layers"] == ["other", *edited]


def test_verify_passes_and_restore_gives_the_base(base: Path, baked: Path, tmp_path: Path) -> None:
    found = verify(baked, base)
    assert found.verdict == "passed"
    assert [level.level for level in found.levels] == ["tensors"]
    for name, source in (("kept", None), ("taken", base)):
        copy = tmp_path / name
        shutil.copytree(baked, copy)
        if source is not None:
            (copy / "alignez" / "base_tensors.safetensors").unlink()
        restore(copy, source)
        assert contents(copy) == contents(base)


def _rewritten(folder: Path, change: Any) -> None:
    tensors = open_folder(folder)
    for file in tensors.files:
        values = {name: tensors.read(name) for name in tensors.header(file).entries}
        write_tensors(folder / file, change(values), {"format": "pt"})


@pytest.mark.parametrize("what", ["value", "scale", "copied", "config", "unlisted"])
def test_verify_finds_what_is_not_as_it_must_be(tmp_path: Path, what: str) -> None:
    path = save_fp8("llama", tmp_path / "base")
    out = tmp_path / "out"
    assert bake(path, plan_for(open_model_folder(path, fp8=True)), out).verdict == "passed"
    edited, plain = "model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.up_proj.weight"
    tensors = open_folder(path)

    def changed(values: dict[str, Any]) -> dict[str, Any]:
        if what == "value":
            values[edited] = values[edited] + np.asarray(1, values[edited].dtype)
        elif what == "scale":
            values[f"{edited}_scale_inv"] = tensors.read(f"{edited}_scale_inv")
        elif what == "copied":
            values[plain] = -values[plain]
        return values

    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    listed = config["quantization_config"]["modules_to_not_convert"]
    _rewritten(out, changed)
    if what == "config":
        listed.append("model.layers.0.mlp.up_proj")
    elif what == "unlisted":
        listed.remove("model.layers.0.self_attn.o_proj")
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out / "alignez" / "manifest.json").unlink()  # so that the levels alone judge
    found = verify(out, path)
    assert found.verdict == "failed"
    expected = {
        "value": f"{edited}: ",
        "scale": f"neither the base's nor the edits': {edited}_scale_inv",
        "copied": f"differ from the base's: {plain}",
        "config": "config.json is not what it must be in quantization_config",
        "unlisted": "config.json is not what it must be in quantization_config",
    }[what]
    assert any(expected in reason for reason in found.reasons)


def test_deepseek_v3_is_baked_but_for_its_experts(tmp_path: Path) -> None:
    path = save_fp8("deepseek_v3", tmp_path / "base")
    model = open_model_folder(path, fp8=True)
    assert bake(path, plan_for(model), tmp_path / "out").verdict == "passed"
    with pytest.raises(BadInputError, match=r"experts at site .* hold FP8 codes.*edit attn_write"):
        find_slot(model, Site("mlp_write", 0))


@pytest.mark.parametrize("artefact", ["adapter", "gguf", "edits", "onnx", "onnx-genai"])
def test_other_artefacts_are_refused_with_the_way_out(
    base: Path, plan: EditPlan, tmp_path: Path, artefact: str
) -> None:
    with (
        nothing_written(tmp_path),
        pytest.raises(BadInputError, match=r"FP8 weights.*unquantised base.*--allow-other-base"),
    ):
        bake(base, plan, tmp_path / "out", artefact=artefact)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verify": "forward"}, "FP8 weights.*'forward': use level 'tensors'"),
        ({"dtype": "float32"}, "FP8 weights.*leave --dtype out"),
    ],
)
def test_settings_that_do_not_go_with_it(
    base: Path, plan: EditPlan, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=message):
        bake(base, plan, tmp_path / "out", **settings)


def test_it_is_not_run(base: Path) -> None:
    with pytest.raises(BadInputError, match=r"FP8 weights, which every machine runs otherwise.*unquantised base"):
        load_model(open_model_folder(base, fp8=True))


def test_edits_that_do_not_fold_are_refused(base: Path, tmp_path: Path) -> None:
    model = open_model_folder(base, fp8=True)
    constant = plan_for(model, constant=True)
    for code in (False, True):
        with nothing_written(tmp_path), pytest.raises(BadInputError):
            bake(base, constant, tmp_path / "out", trust_remote_code=code)


@pytest.mark.parametrize("words", [("pairs",), ("explain",)])
def test_what_runs_the_base_or_decides_for_others_refuses_it(
    base: Path, tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "pairs.jsonl") if words == ("pairs",) else ()
    assert command(*words, "--model", base, *out) == 2
    assert "holds FP8 weights with a scale a block" in " ".join(capsys.readouterr().err.split())


def test_damaged_scales_are_refused(tmp_path: Path) -> None:
    weight = "model.layers.0.self_attn.o_proj.weight"
    scale = f"{weight}_scale_inv"
    changes: dict[str, Any] = {
        "is missing": lambda values: {name: value for name, value in values.items() if name != scale},
        r"is F32 \[1, 1\]": lambda values: {**values, scale: values[scale][:1, :1].copy()},
        "is F16": lambda values: {**values, scale: values[scale].astype(np.float16)},
        "holds NaN or infinity": lambda values: {**values, scale: np.full_like(values[scale], np.inf)},
    }
    for number, (message, change) in enumerate(changes.items()):
        path = save_fp8("llama", tmp_path / f"base{number}")
        plan = plan_for(open_model_folder(path, fp8=True))
        _rewritten(path, change)
        with pytest.raises(BadInputError, match=message):
            bake(path, plan, tmp_path / "out", allow_other_base=True)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"weight_block_size": None}, "without weight_block_size"),
        ({"weight_block_size": [128]}, "must be two positive integers"),
        ({"weight_block_size": [0, 128]}, "must be two positive integers"),
        ({"activation_scheme": "static"}, "activation_scheme = 'static'.*unquantised base"),
        ({"fmt": "e5m2"}, "fmt = 'e5m2'.*unquantised base"),
        ({"expert_dtype": "fp4"}, "expert_dtype = 'fp4'.*unquantised base"),
    ],
)
def test_other_kinds_of_fp8_are_refused_by_name(
    base: Path, tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    path = tmp_path / "base"
    shutil.copytree(base, path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    change_config(path, {"quantization_config": {**config["quantization_config"], **entries}})
    with pytest.raises(BadInputError, match=message):
        open_model_folder(path, fp8=True)


def test_a_dtype_that_would_round_again_is_refused(base: Path, plan: EditPlan, tmp_path: Path) -> None:
    path = tmp_path / "base"
    shutil.copytree(base, path)
    change_config(path, {"dtype": "float16"})
    with pytest.raises(BadInputError, match="dtype = 'float16'"):
        bake(path, plan, tmp_path / "out", allow_other_base=True)


def test_a_name_that_stands_for_another_module_too_is_refused(tmp_path: Path) -> None:
    path = save_fp8("llama", tmp_path / "base")
    plan = plan_for(open_model_folder(path, fp8=True))
    name = "model.layers.0.self_attn.o_proj.weight"

    def with_draft(values: dict[str, Any]) -> dict[str, Any]:
        draft = {f"draft.{key}": values[key] for key in (name, f"{name}_scale_inv")}
        return {**values, **draft}

    _rewritten(path, with_draft)
    with pytest.raises(BadInputError, match=r"would stand for draft\.model\.layers\.0\.self_attn\.o_proj as well"):
        bake(path, plan, tmp_path / "out", allow_other_base=True)


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4", "fbgemm_fp8", "hqq", "torchao"]
)
def test_other_quantised_formats_are_refused_by_name(base: Path, tmp_path: Path, method: str) -> None:
    path = tmp_path / "base"
    shutil.copytree(base, path)
    change_config(path, {"quantization_config": {"quant_method": method}})
    with pytest.raises(BadInputError, match=f"quant_method '{method}'.*use the unquantised base, bake it"):
        open_model_folder(path, fp8=True)
