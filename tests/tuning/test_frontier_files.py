"""Candidates beside the chosen edits: all or none, and found by name alone."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.edit import Edit
from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site
from alignez_bake.tuning.frontier_files import (
    check_frontier_replaceable,
    edits_at_point,
    frontier_folder,
    remove_frontier,
    write_frontier,
)


def plan(value):
    return EditPlan((Edit(Site("mlp_write", 0), bias=np.full(4, value, np.float32)),))


@pytest.fixture
def edits(tmp_path):
    path = tmp_path / "edits.safetensors"
    write_edits(plan(1.0), path)
    return path


def test_each_candidate_is_found_by_its_name(edits):
    write_frontier(edits, {"ridge-1": plan(2.0), "ridge-1.5": plan(3.0)})
    assert frontier_folder(edits).name == "edits.frontier"
    for name, value in (("ridge-1", 2.0), ("ridge-1.5", 3.0)):
        assert read_edits(edits_at_point(edits, name)).edits[0].bias[0] == value
    assert sorted(entry.name for entry in edits.parent.iterdir()) == ["edits.frontier", "edits.safetensors"]


def test_another_search_replaces_all_of_them(edits):
    write_frontier(edits, {"ridge-1": plan(2.0)})
    write_frontier(edits, {"ridge-2": plan(3.0)})
    assert [entry.name for entry in frontier_folder(edits).iterdir()] == ["ridge-2.safetensors"]
    write_frontier(edits, {})
    assert frontier_folder(edits).is_dir()
    remove_frontier(edits)
    remove_frontier(edits)
    assert not frontier_folder(edits).exists()


@pytest.mark.parametrize("point", ["ridge-9", "../edits", "", "/etc/passwd", "ridge-1.safetensors"])
def test_a_name_that_is_not_there_is_no_path(edits, point):
    write_frontier(edits, {"ridge-1": plan(2.0)})
    with pytest.raises(BadInputError, match=r"is no candidate of .*: it has 'ridge-1'"):
        edits_at_point(edits, point)


def test_without_a_search_there_are_no_points(edits):
    with pytest.raises(BadInputError, match="no candidates lie beside it"):
        edits_at_point(edits, "ridge-1")


def test_what_is_not_ours_is_not_replaced(edits, tmp_path):
    check_frontier_replaceable(edits)
    write_frontier(edits, {"ridge-1": plan(2.0)})
    check_frontier_replaceable(edits)
    (frontier_folder(edits) / "notes.txt").write_text("mine")
    with pytest.raises(BadInputError, match=r"holds notes\.txt, which is no edit file"):
        check_frontier_replaceable(edits)
    (frontier_folder(edits) / "notes.txt").rename(frontier_folder(edits) / "model.safetensors")
    with pytest.raises(BadInputError):
        check_frontier_replaceable(edits)
    remove_frontier(edits)
    frontier_folder(edits).symlink_to(tmp_path)
    with pytest.raises(BadInputError, match="is no folder"):
        check_frontier_replaceable(edits)
