import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_bake.edit_plan import BaseFingerprint
from alignez_bake.errors import BadInputError
from alignez_bake.preference_pairs.pair_file import read_pairs, write_pairs
from alignez_bake.preference_pairs.records import PairHeader, PairOrigin, PairRecord, PairSet, parse_record
from alignez_bake.safetensors_io.strict_json import parse_object

ORIGIN = PairOrigin(BaseFingerprint("llama", "c", "t"), "k")
PAIRS = PairSet(
    (
        PairRecord({"query": "Why\u2028?", "subject": [1]}, "helpful", "good", " so.", "be kind", "Human: Why?", 7),
        PairRecord({"query": "Why?"}, "humor", "bad", ""),
    ),
    PairHeader(ORIGIN, {"seed": 0}),
)


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


def test_round_trip(tmp_path):
    write_pairs(tmp_path / "a", PAIRS)
    assert read_pairs(tmp_path / "a", origin=ORIGIN) == PAIRS
    write_pairs(tmp_path / "b", read_pairs(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


text = st.text()


@given(
    st.builds(PairRecord, st.fixed_dictionaries({"query": text.filter(str.strip)}), text, st.just("bad"), text, text)
)
def test_any_text_survives(record):
    line = record.line()
    assert "\n" not in line
    assert parse_record(parse_object(line.encode(), "here"), "here", None) == record


def test_own_pairs_need_three_keys(file):
    path = file(
        {"query": "Why?", "side": "good", "answer": "so"}, "", {"query": "b", "side": "bad", "answer": "", "x": 1}
    )
    assert read_pairs(path, default_objective="humor", origin=ORIGIN) == PairSet(
        (
            PairRecord({"query": "Why?"}, "humor", "good", "so"),
            PairRecord({"query": "b", "x": 1}, "humor", "bad", ""),
        ),
        None,
    )


def test_pairs_of_another_model(tmp_path):
    path = tmp_path / "a"
    write_pairs(path, PAIRS)
    with pytest.raises(BadInputError, match="another model's tokens"):
        read_pairs(path, origin=replace(ORIGIN, tokenizer_sha256="x"))
    for change in ({"model_type": "x"}, {"config_sha256": "x"}, {"tensors_sha256": "x"}):
        with pytest.raises(BadInputError, match="pairs of another model "):
            read_pairs(path, origin=replace(ORIGIN, model=replace(ORIGIN.model, **change)))


GOOD = {"query": "a", "side": "good", "answer": "b", "objective": "o"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no pairs"),
        ([PAIRS.header.line()], "holds no pairs"),
        ([GOOD, {**GOOD, "side": "ugly"}], "line 2: side 'ugly'"),
        ([{k: v for k, v in GOOD.items() if k != "answer"}], "line 1: 'answer' is missing"),
        ([{k: v for k, v in GOOD.items() if k != "objective"}], "line 1: 'objective' is missing"),
        (["", {**GOOD, "query": " "}], "line 2: 'query' is empty"),
        ([{**GOOD, "answer": 3}], "line 1: 'answer' must be text: 3"),
        ([{**GOOD, "seed": True}], "'seed' must be an integer"),
        ([GOOD, "{"], "line 2 is not valid JSON"),
        ([GOOD, PAIRS.header.line()], "line 2: 'query' is missing"),
        ([{"alignez_pairs": 2}], "format 2: this version reads 1"),
        ([{"alignez_pairs": True}], "format True"),
        ([{"alignez_pairs": 1, "model": {}}], "'model' of the header"),
        ([{**json.loads(PAIRS.header.line()), "more": 1}], "unknown key 'more'"),
        ([{**json.loads(PAIRS.header.line()), "tokenizer_sha256": None}], "'tokenizer_sha256' of the header"),
        ([{**json.loads(PAIRS.header.line()), "settings": []}], "'settings' of the header"),
    ],
)
def test_bad_files(file, lines, message):
    with pytest.raises(BadInputError, match=message):
        read_pairs(file(*lines))


def test_no_such_file(tmp_path):
    with pytest.raises(BadInputError, match="no such file of pairs"):
        read_pairs(tmp_path / "none")
    with pytest.raises(BadInputError, match="cannot be written"):
        write_pairs(tmp_path / "none" / "pairs", PAIRS)
