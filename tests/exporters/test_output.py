"""What lies in a result folder: the base's files, layout and bytes, and the edits; nothing else, and never a date."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.commands.verify import verify
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.writer import write_tensors
from tests.baking import command, contents, plan_for, rewrite_names

OURS = {
    "alignez/manifest.json",
    "alignez",
    "alignez/alignez.json",
    "alignez/certificate.json",
    "alignez/edits.safetensors",
    "README.md",
}


@pytest.fixture
def base(tmp_path, save_tiny):
    return save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)


@pytest.fixture
def sharded(tmp_path, save_tiny):
    folder = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def raw_header(path):
    data = path.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def test_the_result_holds_the_bases_files_and_ours(base, tmp_path):
    bake(base, plan_for(base), tmp_path / "out")
    written, source = contents(tmp_path / "out"), contents(base)
    assert set(written) == set(source) | OURS
    for name in set(source) - {"model.safetensors"}:
        assert written[name] == source[name], name


def test_header_bytes_order_and_untouched_tensors_stay(base, tmp_path):
    plan = plan_for(base)
    bake(base, plan, tmp_path / "out")
    assert raw_header(tmp_path / "out" / "model.safetensors") == raw_header(base / "model.safetensors")
    before, after = open_model_folder(base).tensors, open_model_folder(tmp_path / "out").tensors
    header, new_header = before.header("model.safetensors"), after.header("model.safetensors")
    assert list(header.entries.values()) == list(new_header.entries.values())
    changed = [name for name in before.names() if before.read(name).tobytes() != after.read(name).tobytes()]
    assert changed == [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(2)]


def test_shards_and_index_stay(sharded, tmp_path):
    bake(sharded, plan_for(sharded), tmp_path / "out")
    names = sorted(path.name for path in sharded.glob("model*"))
    assert sorted(path.name for path in (tmp_path / "out").glob("model*")) == names
    for name in names:
        if name.endswith(".json"):
            assert (tmp_path / "out" / name).read_bytes() == (sharded / name).read_bytes()
        else:
            assert raw_header(tmp_path / "out" / name) == raw_header(sharded / name)


def test_another_dtype_keeps_the_shards_and_brings_the_index_in_line(sharded, tmp_path):
    result = bake(sharded, plan_for(sharded), tmp_path / "out", dtype="float32")
    assert result.verdict == "passed"
    before = json.loads((sharded / "model.safetensors.index.json").read_text())
    after = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert after["weight_map"] == before["weight_map"]
    assert after["metadata"]["total_size"] == 2 * before["metadata"]["total_size"]
    tensors = open_model_folder(tmp_path / "out").tensors
    assert {tensors.entry(name).dtype for name in tensors.names()} == {"F32"}


def test_the_bases_card_is_kept_beside_ours(base, tmp_path):
    (base / "README.md").write_text("# The base's own card\n")
    bake(base, plan_for(base), tmp_path / "out")
    assert (tmp_path / "out" / "alignez" / "base_README.md").read_text() == "# The base's own card\n"
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "2 low-rank edits" in card
    assert "| tensors | verdict | passed |" in card
    assert str(tmp_path) not in card


OTHER_WEIGHTS = [
    "pytorch_model.bin",
    "consolidated.safetensors",
    "model-q4.gguf",
    "tf_model.h5",
    "original/consolidated.00.pth",
    "onnx/model.onnx",
]


def test_other_copies_of_the_weights_are_left_out_and_named(base, tmp_path, capsys):
    for name in OTHER_WEIGHTS:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"the unedited weights, once more")
    result = bake(base, plan_for(base), tmp_path / "out")
    assert {name for name, _ in result.skipped} == set(OTHER_WEIGHTS)
    assert not [name for name in OTHER_WEIGHTS if (tmp_path / "out" / name).exists()]
    record = json.loads((tmp_path / "out" / "alignez" / "alignez.json").read_text())
    assert {entry["name"] for entry in record["files_left_out"]} == set(OTHER_WEIGHTS)
    command("bake", "--model", base, "--edits", tmp_path / "out/alignez/edits.safetensors", "--out", tmp_path / "two")
    printed = capsys.readouterr().out
    assert all(f"Left out: {name}" in printed.replace("\n", " ") for name in OTHER_WEIGHTS)


def test_a_bases_adapter_config_is_left_out(base, tmp_path):
    (base / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    result = bake(base, plan_for(base), tmp_path / "out")
    assert result.verdict == "passed"
    assert [name for name, _ in result.skipped] == ["adapter_config.json"]
    assert not (result.path / "adapter_config.json").exists()


def test_nested_files_are_kept(base, tmp_path):
    (base / "assets" / "deep").mkdir(parents=True)
    (base / "assets" / "deep" / "README.md").write_text("nested")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    bake(base, plan_for(base), tmp_path / "out")
    assert (tmp_path / "out" / "assets" / "deep" / "README.md").read_text() == "nested"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_unknown_tensors_are_kept_byte_for_byte(base, tmp_path):
    extra = {
        "mtp.layers.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "counts": np.array([2**40, -1], np.int64),
        "flag": np.array(True),
    }
    rewrite_names(base, lambda tensors: tensors | extra)
    bake(base, plan_for(base), tmp_path / "out")
    bake(base, plan_for(base), tmp_path / "wide", dtype="float64")
    kept, wide = (open_model_folder(tmp_path / name).tensors for name in ("out", "wide"))
    for name, values in extra.items():
        assert kept.read(name).dtype == values.dtype
        assert kept.read(name).tobytes() == values.tobytes()
        assert np.array_equal(wide.read(name), values)
    assert wide.read("mtp.layers.0.weight").dtype == np.float64
    assert wide.read("counts").dtype == np.int64


def test_the_same_command_gives_the_same_bytes(sharded, tmp_path):
    (sharded / "README.md").write_text("card")
    plan = plan_for(sharded, ("attn_write", "mlp_write"))
    bake(sharded, plan, tmp_path / "out")
    first = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    os.utime(sharded / "config.json", (1, 1))
    bake(sharded, plan, tmp_path / "out")
    assert contents(tmp_path / "out") == first


def test_a_result_can_be_the_base_of_another(base, tmp_path):
    bake(base, plan_for(base), tmp_path / "one")
    second = bake(tmp_path / "one", plan_for(tmp_path / "one", seed=1), tmp_path / "two")
    assert second.verdict == "passed"
    assert ("alignez/", "the record of an earlier bake") in second.skipped
    assert verify(tmp_path / "two", level="tensors").verdict == "passed"


def test_a_hub_snapshot_of_links_gives_real_files_and_stays_as_it_is(base, tmp_path):
    repository = tmp_path / "models--tiny--llama"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (base / "assets").mkdir()
    (base / "assets" / "notes.txt").write_text("nested")
    for number, path in enumerate(sorted(path for path in base.rglob("*") if path.is_file())):
        blob = blobs / f"{number:040x}"
        shutil.copyfile(path, blob)
        blob.chmod(0o444)
        link = snapshot / path.relative_to(base)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    before = contents(repository)
    out = tmp_path / "out"
    assert bake(snapshot, plan_for(base), out).verdict == "passed"
    assert contents(repository) == before
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    bake(base, plan_for(base), tmp_path / "plain")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert (out / "assets" / "notes.txt").read_text() == "nested"
    assert verify(out, level="tensors").verdict == "passed"


def test_a_link_out_of_the_base_is_refused(base, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (base / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match="outside of the model's folder"):
        bake(base, plan_for(base), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "secret.txt"]


def test_the_metadata_of_the_file_stays(base, tmp_path):
    tensors = open_model_folder(base).tensors
    write_tensors(
        base / "model.safetensors",
        {name: tensors.read(name) for name in tensors.names()},
        {"format": "pt", "licence": "free"},
    )
    bake(base, plan_for(base), tmp_path / "out", dtype="float16")
    assert open_model_folder(tmp_path / "out").tensors.header("model.safetensors").metadata == {
        "format": "pt",
        "licence": "free",
    }
