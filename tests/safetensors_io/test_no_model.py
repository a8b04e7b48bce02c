"""Folders that are no model, or not one that is read."""

import pytest

from tests.safetensors_io.folders import refused


def folder_of(tmp_path, *names):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_absent_folder_and_file_for_folder(tmp_path, single):
    refused(tmp_path / "absent", "absent", "no such folder")
    refused(single / "model.safetensors", "is a file", "config.json")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth", "last.ckpt"]
)
def test_pickles_are_not_read(tmp_path, name):
    folder = folder_of(tmp_path, "config.json", name)
    refused(folder, name, "pickled weights", "not read", "save it as safetensors")


def test_adapter(tmp_path):
    folder = folder_of(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    refused(folder, "adapter_model.safetensors", "adapter", "base model")


def test_other_safetensors_files(tmp_path):
    folder = folder_of(tmp_path, "config.json", "consolidated.safetensors", "pytorch_model.bin")
    refused(folder, "neither model.safetensors nor model.safetensors.index.json", "consolidated.safetensors")


def test_shards_without_an_index(tmp_path):
    names = [f"model-{i:05}-of-00012.safetensors" for i in range(1, 13)]
    refused(folder_of(tmp_path, *names), names[0], "and 4 more")


def test_nothing(tmp_path):
    refused(folder_of(tmp_path), "found nothing")
