"""The reader of edit files takes any bytes: it gives what the file says, or refuses with our own error."""

from __future__ import annotations

import json
from functools import partial

import pytest

from alignez_bake import edit_file
from alignez_bake.edit_file import METADATA_KEY, read_edits, write_edits
from tests.fuzz.agreement import library_tensors
from tests.fuzz.running import SHORT_AND_LONG, hold_for_each, read_or_refused, sound_ones_pass
from tests.fuzz.strategies import ANY_BYTES, edit_files

PARTS = ("left", "right", "offset", "bias")
FILE_DTYPES = {"float32": "F32", "float64": "F64"}


@pytest.fixture(params=["read", "mapped"])
def check(request, tmp_path, hooks, monkeypatch):
    """`check(data)`: whether a file of these bytes is accepted; then the plan is held against the file."""
    path = tmp_path / "edits.safetensors"
    if request.param == "mapped":  # as the arrays of large files are
        monkeypatch.setattr(edit_file, "MAPPED_FROM_BYTES", 0)

    def check(data):
        path.write_bytes(data)
        # An error of an edit shows its values as they are.
        plan = read_or_refused(partial(read_edits, path), hooks, path, size=len(data), allowed=(path,), short=False)
        if plan is None:
            return False
        tensors, metadata = library_tensors(path)
        assert tensors == {
            f"edits.{index}.{part}": (FILE_DTYPES[array.dtype.name], array.shape, array.tobytes())
            for index, edit in enumerate(plan.edits)
            for part in PARTS
            if (array := getattr(edit, part)) is not None
        }
        document = json.loads(metadata[METADATA_KEY])
        assert len(document["edits"]) == len(plan.edits)
        for entry, edit in zip(document["edits"], plan.edits, strict=True):
            assert (entry["site"]["kind"], entry["site"].get("layer")) == (edit.site.kind, edit.site.layer)
            assert float(entry["strength"]) == edit.strength
            for name in ("reads", "gate", "positions"):
                assert entry[name] == getattr(edit, name)
            assert entry.get("objective") == edit.objective
        assert {name: float(weight) for name, weight in document.get("weights", {}).items()} == plan.weights
        assert document.get("provenance", {}) == plan.provenance
        # Nothing that is made from the plan is larger than the file: not a vector of `rank` zeros either.
        assert all(1 <= size <= len(data) for edit in plan.edits for size in (edit.d_out, edit.rank or 1))
        # What is accepted can be written, and is then the same.
        again = tmp_path / "again.safetensors"
        write_edits(plan, again)
        copy = read_edits(again)
        assert all(mine.equals(theirs) for mine, theirs in zip(plan.edits, copy.edits, strict=True))
        assert (copy.weights, copy.base, copy.provenance) == (plan.weights, plan.base, plan.provenance)
        return True

    return check


@SHORT_AND_LONG
def test_any_bytes(check, examples):
    hold_for_each(ANY_BYTES, check, examples)


@SHORT_AND_LONG
def test_sound_files_and_damaged_ones(check, examples):
    sound_ones_pass(edit_files(), check, examples)
