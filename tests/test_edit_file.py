"""edits.safetensors: exact there and back, and hostile files refused by name."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from alignez_bake import edit_file
from alignez_bake.edit import Edit
from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.edit_plan import BaseFingerprint, EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.immutable_arrays import is_immutable
from alignez_bake.site import LAYERLESS, SITE_KINDS, Site
from tests.random_edits import random_edit

BASE = BaseFingerprint("llama", "0" * 64, "f" * 64)


@st.composite
def plans(draw):
    edits = []
    for index in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(SITE_KINDS))
        site = Site(kind, None if kind in LAYERLESS else draw(st.integers(0, 99)))
        dtype = draw(st.sampled_from([np.float32, np.float64]))
        edit = random_edit(site, 6, 6, rank=draw(st.integers(1, 4)), constant=draw(st.booleans()), seed=index)
        parts = {name: getattr(edit, name) for name in ("left", "right", "offset", "bias")}
        edits.append(
            Edit(
                site,
                **{name: None if array is None else array.astype(dtype) for name, array in parts.items()},
                gate=draw(st.sampled_from(["identity", "relu", "tanh"])),
                positions=draw(st.sampled_from(["all", "last"])),
                strength=draw(st.floats(-1e6, 1e6)),
                objective=draw(st.sampled_from([None, "helpful", "öhm"])),
            )
        )
    objectives = {edit.objective for edit in edits} - {None}
    return EditPlan(
        tuple(edits),
        weights={name: draw(st.floats(-5, 5)) for name in objectives},
        base=draw(st.sampled_from([None, BASE])),
        provenance={"method": "test", "nested": {"seed": 0, "list": [1.5, None, True]}},
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(plans())
def test_save_and_load_is_exact(tmp_path, plan):
    path = tmp_path / "edits.safetensors"
    write_edits(plan, path)
    loaded = read_edits(path)
    assert len(loaded.edits) == len(plan.edits)
    assert all(mine.equals(theirs) for mine, theirs in zip(plan.edits, loaded.edits, strict=True))
    assert (loaded.weights, loaded.base, loaded.provenance) == (plan.weights, plan.base, plan.provenance)
    first = path.read_bytes()
    write_edits(loaded, path)
    assert path.read_bytes() == first


def test_the_file_is_what_the_format_says(tmp_path):
    path = tmp_path / "edits.safetensors"
    edit = random_edit(Site("attn_write", 3), 4, 5, reads="input", objective="helpful")
    write_edits(EditPlan((edit, Edit(Site("embed"), bias=np.ones(4))), base=BASE), path)
    with safe_open(path, "numpy") as file:
        assert sorted(file.keys()) == ["edits.0.left", "edits.0.right", "edits.1.bias"]
        assert list(file.metadata()) == ["alignez"]
        document = json.loads(file.metadata()["alignez"])
    assert document["format"] == 1
    assert document["edits"][0] == {
        "site": {"kind": "attn_write", "layer": 3},
        "reads": "input",
        "gate": "identity",
        "positions": "all",
        "strength": 1.0,
        "objective": "helpful",
    }
    assert document["edits"][1]["site"] == {"kind": "embed"}
    assert document["base"] == {"model_type": "llama", "config_sha256": "0" * 64, "tensors_sha256": "f" * 64}


def entry(**changes):
    plain = {
        "site": {"kind": "mlp_write", "layer": 0},
        "reads": "output",
        "gate": "identity",
        "positions": "all",
        "strength": 1.0,
    }
    return {**plain, **changes}


def document(*entries, **changes):
    return {"format": 1, "base": None, "edits": list(entries) or [entry()], "provenance": {}, **changes}


ONES = np.ones((4, 2), dtype=np.float32)
PAIR = {"edits.0.left": ONES, "edits.0.right": ONES}
without_strength = entry()
del without_strength["strength"]

HOSTILE = {
    "unknown version": (document(format=2), PAIR, "format 2"),
    "version as a bool": (document(format=True), PAIR, "format True"),
    "unknown key": (document(extra=1), PAIR, "'extra' is unknown"),
    "unknown key in an entry": (document(entry(scale=2)), PAIR, "'scale' is unknown"),
    "missing key": (document(without_strength), PAIR, "'strength' is missing"),
    "unknown kind": (document(entry(site={"kind": "mlp_out", "layer": 0})), PAIR, "mlp_out"),
    "kind that is no string": (document(entry(site={"kind": ["mlp_write"], "layer": 0})), PAIR, "edit 0"),
    "illegal reads": (document(entry(site={"kind": "residual", "layer": 0}, reads="input")), PAIR, "can read output"),
    "unknown gate": (document(entry(gate="gelu")), PAIR, "gelu"),
    "gate that is no string": (document(entry(gate={"a": 1})), PAIR, "edit 0"),
    "strength that is a string": (document(entry(strength="1")), PAIR, "must be a number"),
    "huge strength": (document(entry(strength=10**400)), PAIR, "edit 0"),
    "strength beyond all floats": (document(entry(strength=-(10**309))), PAIR, "strength is -1000"),
    "dial beyond all floats": (
        document(entry(objective="a"), weights={"a": 10**309}), PAIR, "edits.safetensors: weight of 'a' is 1000",
    ),
    "objective with a line break": (document(entry(objective="a\nb")), PAIR, r"objective 'a\\nb' is not printable"),
    "no width, any rank": (
        document(), {name: np.ones((0, 2**40), np.float32) for name in PAIR}, r"shape \(0, 1099511627776\): width",
    ),
    "negative layer": (document(entry(site={"kind": "mlp_write", "layer": -1})), PAIR, "layer -1"),
    "ranks that disagree": (document(), {**PAIR, "edits.0.right": np.ones((4, 3), np.float32)}, "right has rank 3"),
    "rank 0": (document(), {k: np.ones((4, 0), np.float32) for k in PAIR}, "rank 0"),
    "nan": (document(), {**PAIR, "edits.0.right": np.full((4, 2), np.nan, np.float32)}, "not finite"),
    "half precision": (document(), {k: v.astype(np.float16) for k, v in PAIR.items()}, "F16"),
    "tensor without an entry": (document(), {**PAIR, "edits.1.left": ONES}, "belongs to no entry"),
    "foreign tensor": (document(), {**PAIR, "weight": ONES}, "'weight' is not of the form"),
    "index with a leading zero": (document(), {**PAIR, "edits.00.left": ONES}, "not of the form"),
    "entry without tensors": (document(entry(), entry()), PAIR, "would do nothing"),
    "no edits": (document(edits=[]), PAIR, "1 to"),
    "edits that are no list": (document(edits={"0": entry()}), PAIR, "array"),
    "base without a hash": (document(base={"model_type": "llama"}), PAIR, "config_sha256"),
    "base with a bad hash": (
        document(base={"model_type": "llama", "config_sha256": "x", "tensors_sha256": "0" * 64}),
        PAIR,
        "^[^:]*: base.config_sha256 is 'x': it must be 64 hexa",
    ),
    "dial of no objective": (document(weights={"humor": 1.0}), PAIR, "humor"),
    "dial that is no number": (document(entry(objective="a"), weights={"a": "1"}), PAIR, "finite number"),
    "provenance that is no object": (document(provenance=[1]), PAIR, "'provenance'"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_documents_are_refused_by_name(tmp_path, case):
    content, tensors, message = HOSTILE[case]
    path = tmp_path / "edits.safetensors"
    save_file(tensors, path, {"alignez": json.dumps(content)})
    with pytest.raises(BadInputError, match=message) as caught:
        read_edits(path)
    assert "\n" not in str(caught.value)


RAW_DOCUMENTS = {
    "not JSON": ("{", "not valid JSON"),
    "an array": ("[]", "must be an object"),
    "NaN": (json.dumps(document()).replace("1.0", "NaN"), "finite"),
    "a key twice": (json.dumps(document()).replace('"format": 1', '"format": 1, "format": 1'), "twice"),
    "deep nesting": ("[" * 100_000, "nested|JSON"),
    "deep provenance": (json.dumps(document(provenance={"a": 7})).replace("7", "[" * 200 + "]" * 200), "100 levels"),
    # An infinity, which no file of JSON can hold again.
    "infinite provenance": (json.dumps(document(provenance={"a": 7})).replace("7", "1e999"), "'1e999' is beyond"),
}


@pytest.mark.parametrize("case", RAW_DOCUMENTS)
def test_damaged_metadata_is_refused(tmp_path, case):
    text, message = RAW_DOCUMENTS[case]
    path = tmp_path / "edits.safetensors"
    save_file(PAIR, path, {"alignez": text})
    with pytest.raises(BadInputError, match=message):
        read_edits(path)


def test_whole_numbers_are_numbers(tmp_path):
    path = tmp_path / "edits.safetensors"
    save_file(
        PAIR, path, {"alignez": json.dumps(document(entry(strength=10**30, objective="a"), weights={"a": 2**70}))}
    )
    plan = read_edits(path)
    assert (plan.edits[0].strength, plan.weights) == (1e30, {"a": 2.0**70})


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "edits.safetensors"
    save_file(PAIR, path)
    with pytest.raises(BadInputError, match="is no edit file"):
        read_edits(path)
    save_file(PAIR, path, {"alignez": json.dumps(document()), "other": "x"})
    with pytest.raises(BadInputError, match="other"):
        read_edits(path)
    save_file(PAIR, path, {"a\nb": "x"})
    with pytest.raises(BadInputError, match=r"has \['a\\nb'\]"):
        read_edits(path)
    save_file(PAIR, path, {"alignez": json.dumps(document())})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadInputError):
        read_edits(path)
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(BadInputError):
        read_edits(path)
    path.write_bytes(b"\x80\x04\x95\x00" * 10)
    with pytest.raises(BadInputError, match="pickle"):
        read_edits(path)
    with pytest.raises(BadInputError):
        read_edits(tmp_path / "absent.safetensors")


@pytest.fixture
def all_mapped(monkeypatch):
    """Files of every size are mapped."""
    monkeypatch.setattr(edit_file, "MAPPED_FROM_BYTES", 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(plans())
def test_a_mapped_plan_is_the_same_and_can_be_written_over_its_own_file(tmp_path, all_mapped, plan):
    path = tmp_path / "edits.safetensors"
    write_edits(plan, path)
    first = path.read_bytes()
    loaded = read_edits(path)
    assert all(mine.equals(theirs) for mine, theirs in zip(plan.edits, loaded.edits, strict=True))
    write_edits(loaded, path)
    assert path.read_bytes() == first
    assert all(mine.equals(theirs) for mine, theirs in zip(plan.edits, loaded.edits, strict=True))


def test_a_mapped_file_is_checked_as_any_other(tmp_path, all_mapped):
    path = tmp_path / "edits.safetensors"
    save_file({**PAIR, "edits.0.left": np.full((4, 2), np.nan, np.float32)}, path, {"alignez": json.dumps(document())})
    with pytest.raises(BadInputError, match="left holds values that are not finite"):
        read_edits(path)


@pytest.mark.parametrize("mapped_from", [0, 1 << 30], ids=["mapped", "read"])
def test_a_file_that_changes_while_it_is_checked_is_refused(tmp_path, monkeypatch, mapped_from):
    monkeypatch.setattr(edit_file, "MAPPED_FROM_BYTES", mapped_from)
    path = tmp_path / "edits.safetensors"
    write_edits(EditPlan((random_edit(Site("attn_write", 0), 6, 6),)), path)
    check = edit_file._edit

    def changing(entry, tensors, place):
        with path.open("ab") as file:
            file.write(b"x")
        return check(entry, tensors, place)

    monkeypatch.setattr(edit_file, "_edit", changing)
    with pytest.raises(BadInputError, match="changed after its header was read"):
        read_edits(path)


MEASURING = """
import sys, tracemalloc
from alignez_bake.edit_file import read_edits, write_edits

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

read_edits(sys.argv[1])  # what is imported or made once is there
before = anonymous()
tracemalloc.start()
plan = read_edits(sys.argv[2]).scaled(0.5)
write_edits(plan, sys.argv[3])
print(tracemalloc.get_traced_memory()[1], anonymous() - before, len(plan.edits))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_plan_takes_no_memory_beside_its_file(tmp_path):
    """Read, checked, scaled and written again: 34 MB of edits, of which the process itself holds next to nothing."""
    small, large, copy = (tmp_path / name for name in ("small", "large", "copy"))
    edits = [random_edit(Site("mlp_write", layer), 65536, 65536, rank=4, seed=layer) for layer in range(16)]
    single = [Edit(e.site, left=e.left.astype(np.float32), right=e.right.astype(np.float32)) for e in edits]
    write_edits(EditPlan((random_edit(Site("mlp_write", 0), 6, 6),)), small)
    write_edits(EditPlan(tuple(single)), large)
    size = large.stat().st_size
    assert size > 32e6
    command = [sys.executable, "-c", MEASURING, str(small), str(large), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, grown, count = map(int, done.stdout.split())
    assert count == len(edits)
    assert copy.stat().st_size == pytest.approx(size, rel=0.01)
    assert peak < size / 20
    assert grown < size / 20


def test_the_arrays_of_a_large_file_are_mapped_and_those_of_a_small_one_are_not(tmp_path):
    path = tmp_path / "edits.safetensors"
    for width, mapped in ((6, False), (80_000, True)):
        bias = np.ones(width)
        write_edits(EditPlan((Edit(Site("attn_write", 0), bias=bias), Edit(Site("mlp_write", 0), bias=bias))), path)
        array = read_edits(path).edits[0].bias
        assert is_immutable(array)
        owner = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, memoryview) == mapped
