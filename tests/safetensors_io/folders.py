"""What tests of model folders share: names, broken indexes, and refusals."""

from __future__ import annotations

import json

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io import open_folder

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def change_index(folder, change):
    """Write the index anew, changed in place."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def refused(path, *words):
    """The folder is refused in one printable line that has these words."""
    with pytest.raises(BadInputError) as caught:
        open_folder(path)
    message = str(caught.value)
    assert message.isprintable()
    for word in words:
        assert word in message
