"""What cannot be the base again, or not provably, stays as it is."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.commands.restore import restore
from alignez_bake.commands.verify import verify
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.integrity.base_parts import BASE_TENSORS_FILE
from tests.baking import contents, flipped, nothing_written, plan_for, replace_tensors
from tests.commands.small_bakes import small_base

if TYPE_CHECKING:
    from pathlib import Path


def refused(out: Path, base: Path | None, says: str) -> None:
    with nothing_written(out.parent), pytest.raises(BadInputError, match=says):
        restore(out, base)


def test_other_artefacts_are_refused_by_name(made, tmp_path):
    bake(made / "base", plan_for(made / "base"), tmp_path / "edits", artefact="edits")
    refused(tmp_path / "edits", made / "base", "restore undoes checkpoints, and .* is --as 'edits'")


def test_what_is_no_result_is_refused(made, tmp_path):
    refused(made / "base", made / "base", "not a result of alignez-bake")
    with pytest.raises(BadInputError, match="no such result folder"):
        restore(tmp_path / "absent", made / "base")


def test_a_result_of_an_earlier_version_is_refused(copy, made):
    out = copy("out")
    (out / "alignez" / "manifest.json").unlink()
    refused(out, made / "base", "has no alignez/manifest.json, without which nothing proves")


def test_another_base_is_refused(copy, tmp_path):
    other = small_base("llama", tmp_path / "other", dtype=torch.float32)
    refused(copy("out"), other, "is not the base that .* was made from: name the right one with --base")


def test_files_that_nobody_baked_are_not_lost(copy, made):
    out = copy("out")
    (out / "notes.txt").write_text("mine")
    refused(out, made / "base", r"1 file\(s\) that the bake did not write .*'notes\.txt'")


def test_links_are_refused(copy, made, tmp_path):
    out = copy("out")
    (out / "tokenizer.json").rename(tmp_path / "blob")
    (out / "tokenizer.json").symlink_to(tmp_path / "blob")
    refused(out, made / "base", "holds links .*tokenizer.json")
    (tmp_path / "link").symlink_to(copy("kept"))
    refused(tmp_path / "link", made / "base", "is a link")


def test_a_result_without_the_bases_part_is_refused_before_anything_is_made(grown, tmp_path):
    """The base that is at hand has no such file any more."""
    shutil.copytree(grown, tmp_path / "all")
    (tmp_path / "all" / "base" / "tokenizer_config.json").unlink()
    refused(tmp_path / "all" / "out", tmp_path / "all" / "base", "tokenizer_config.json of the base .* is not in")


CHANGED = {
    "a tensor without an edit": lambda out: replace_tensors(
        out, lambda name, values: flipped(values) if "embed_tokens" in name else None
    ),
    "the tokenizer": lambda out: (out / "tokenizer.json").write_text((out / "tokenizer.json").read_text() + " "),
    "the base's card": lambda out: (out / "alignez" / "base_README.md").write_text("# Another\n"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_changed_since_the_bake_is_not_passed_for_the_base(case, copy, made):
    out = copy("kept")
    CHANGED[case](out)
    with nothing_written(out.parent), pytest.raises(CheckFailedError, match="gives a file of the base's hash"):
        restore(out)
    assert verify(out, made / "base", level="manifest").verdict == "failed"
    # The base itself has it.
    assert "taken" in dict(restore(out, made / "base").files).values()
    assert contents(out) == contents(made / "base")


def test_what_was_kept_and_changed_is_not_passed_for_the_base(copy):
    out = copy("kept")
    data = bytearray((out / BASE_TENSORS_FILE).read_bytes())
    data[-1] ^= 1
    (out / BASE_TENSORS_FILE).write_bytes(data)
    with nothing_written(out.parent), pytest.raises(CheckFailedError, match="gives a file of the base's hash"):
        restore(out)


def test_a_base_that_changed_where_its_fingerprint_does_not_look_is_found(grown, tmp_path):
    shutil.copytree(grown, tmp_path / "all")
    config = tmp_path / "all" / "base" / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    with (
        nothing_written(tmp_path),
        pytest.raises(CheckFailedError, match=r"tokenizer_config\.json cannot be restored"),
    ):
        restore(tmp_path / "all" / "out", tmp_path / "all" / "base")
