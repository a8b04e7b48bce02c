"""`alignez/report.json` and the commands of a record: what comes back, and what is refused of anybody's."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.report.html.page_parts import PageParts, read_parts, write_parts
from alignez_bake.report.html.reproduction import commands_of
from tests.report.html_reports import full_report


def parts(**changes):
    return {**PageParts("out", projections=full_report().projections).to_json(), **changes}


def test_parts_come_back_with_four_digits(tmp_path):
    written = PageParts("out", full_report().samples, full_report().projections, ("a note",))
    (tmp_path / "alignez").mkdir()
    write_parts(tmp_path, written)
    found = read_parts(tmp_path)
    assert (found.title, found.samples, found.notes) == (written.title, written.samples, written.notes)
    (one,), (other,) = found.projections, written.projections
    assert (one.site, one.same_axes) == (other.site, other.same_axes)
    np.testing.assert_allclose(one.after.bad, other.after.bad, rtol=5e-4)
    assert not np.array_equal(one.after.bad, other.after.bad)


def cloud(**changes):
    of_side = {"good": [[1.0, 2.0]], "bad": [[0, 0]], "explained": [0.5, 0.2], **changes}
    return {"projections": [{"site": "residual.1", "before": of_side, "after": None, "same_axes": True}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2: this version reads 1"),
        ({"title": 3}, "3 is no text"),
        ({"samples": [{"query": "q", "before": "b"}]}, "KeyError"),
        ({"samples": {}}, "is no list"),
        ({"notes": [3]}, "3 is no text"),
        ({"projections": [3]}, "TypeError"),
        (cloud(good=[]), "without points of both sides"),
        (cloud(good=[[1.0]]), "ValueError"),
        (cloud(bad=[[1.0, True]]), "True is no number that can be drawn"),
        (cloud(bad=[[10**400, 1]]), "no number that can be drawn"),
        (cloud(bad=[[1e300, 1]]), "no number that can be drawn"),
        (cloud(explained=[0.5]), "ValueError"),
        ({"projections": cloud()["projections"] * 65}, "where at most 64 can be shown"),
    ],
)
def test_damaged_parts_are_refused(changes, message):
    assert PageParts.from_json(parts(**cloud()), "report.json").projections
    with pytest.raises(BadInputError, match=message):
        PageParts.from_json(parts(**changes), "report.json")


def test_commands_hold_nothing_but_own_words_and_quoted_names():
    record = {
        "artefact": "onnx",
        "dtype": "float16",
        "options": {"opset": 20, "optimise": True, "weight_bits": 4, "link": "yes"},
    }
    baked, verified = commands_of(record, "a base; rm -r ~")
    assert baked == (
        "alignez-bake bake --model 'a base; rm -r ~' --edits alignez/edits.safetensors --out OUT --as onnx "
        "--dtype float16 --opset 20 --optimize --int4"
    )
    assert verified == "alignez-bake verify OUT --model 'a base; rm -r ~'"
    hostile = {"artefact": "x; y", "dtype": "$(z)", "options": {"opset": "1; y", "rounding": "z`"}, "decisions": 3}
    assert "BASE --edits alignez/edits.safetensors --out OUT" in commands_of(hostile, None)[0]
    assert not set(commands_of(hostile, None)[0]) & set(";$`")
    inserted = {"artefact": "checkpoint", "decisions": [{"route": "insert"}], "options": {"rounding": "carry"}}
    assert commands_of(inserted, "b")[0].endswith("--out OUT --trust-remote-code --rounding carry")
