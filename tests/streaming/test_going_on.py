"""After a kill: the same command goes on, whatever is no longer as it was is made anew, and another is refused."""

from __future__ import annotations

import json

import pytest

from alignez_bake.edit_file import write_edits
from alignez_bake.lowering.row_kernel import VARIABLE, why_not_compiled
from tests.baking import command, contents, plan_for
from tests.streaming.conftest import names, rewritten, touched


def test_the_same_command_goes_on(killed, whole):
    """What the other tests change is what keeps it from going on."""
    assert command(*killed.bake()) == 0
    assert contents(killed.out) == whole
    assert names(killed.out.parent) == ["out"]


def other_config(place):
    config = place.base / "config.json"
    config.write_text(config.read_text().replace('"eos_token_id": 1', '"eos_token_id": 2'))


@pytest.mark.parametrize(
    ("change", "says"), [(touched, "base_files"), (rewritten, "base, base_files"), (other_config, "base, config")]
)
def test_a_changed_base_is_refused(change, says, killed, refused):
    before = contents(killed.base)
    change(killed)
    assert (contents(killed.base) != before) == (change is not touched)
    refused(killed, *killed.bake("--allow-other-base"), says=f"unfinished result of another bake (other {says}")


def test_other_edits_are_refused(killed, refused):
    write_edits(plan_for(killed.base), killed.folder / "other.safetensors")
    refused(killed, *killed.bake(edits="other.safetensors"), says="of another bake (other edits")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--dtype", "float32"), "(other dtype)"),
        (("--link",), "(other settings)"),
        (("--hash", "sha256"), "(other settings)"),
        (("--as", "adapter"), "unfinished result of another bake"),
    ],
)
def test_other_settings_are_refused(options, says, killed, refused):
    refused(killed, *killed.bake(*options), says=says)


def test_rows_are_gone_on_with_by_what_began_them(killed, refused, monkeypatch):
    if (why := why_not_compiled()) is not None:
        pytest.skip(why)
    begun = json.loads(killed.journal.read_bytes().splitlines()[0])["row_backend"]
    (other,) = {"compiled", "numpy"} - {begun}
    monkeypatch.setenv(VARIABLE, other)
    refused(killed, *killed.bake(), says="of another bake (other row_backend)")


def test_a_damaged_journal_is_refused_by_name(killed, refused):
    lines = killed.journal.read_bytes().splitlines(keepends=True)
    killed.journal.write_bytes(lines[0] + b"[" * 100_000 + b"\n")
    refused(killed, *killed.bake(), says=f"{killed.journal} is damaged")


def test_what_is_no_longer_as_it_was_noted_is_written_anew(killed, whole):
    (finished,) = killed.partial.glob("*.safetensors")
    data = bytearray(finished.read_bytes())
    data[len(data) // 2] ^= 1
    finished.write_bytes(data)
    assert command(*killed.bake()) == 0
    assert contents(killed.out) == whole


def test_what_lay_beside_the_weights_is_made_anew(killed, whole):
    for name in ("notes.txt", "tokenizer.json", "alignez/pairs.jsonl", "model-9.safetensors", ".graphs-1/half"):
        path = killed.partial / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("of the killed run")
    assert command(*killed.bake()) == 0
    assert contents(killed.out) == whole
