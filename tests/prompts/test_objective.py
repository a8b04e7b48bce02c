import json

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.prompts.objective import Objective, parse_objectives, read_objectives_file, shipped_objectives

KNOWN = ("helpful", "harmless", "humor")


def test_shipped_objectives_are_those_of_the_paper():
    assert shipped_objectives() == {
        "helpful": Objective("helpful", "helpful", "useless"),
        "harmless": Objective("harmless", "safety-first", "malicious"),
        "humor": Objective("humor", "humorous", "dull and boring"),
    }


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("helpful", {"helpful": 1.0}),
        ("helpful=1,humor=-0.3", {"helpful": 1.0, "humor": -0.3}),
        (" humor = 2e-1 , helpful ", {"humor": 0.2, "helpful": 1.0}),
        ("harmless=0", {"harmless": 0.0}),
    ],
)
def test_objectives_with_weights(text, weights):
    parsed = parse_objectives(text, KNOWN)
    assert parsed == weights
    assert list(parsed) == list(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown objective ''.* known are helpful, harmless, humor"),
        ("helpful,", "unknown objective ''"),
        ("honest", "unknown objective 'honest'.* known are helpful, harmless, humor"),
        ("=1", "unknown objective ''"),
        ("helpful,helpful=2", "'helpful' is given twice"),
        ("helpful=nan", "weight 'nan' of objective 'helpful'"),
        ("helpful=inf", "weight 'inf'"),
        ("helpful=", "weight ''"),
        ("helpful=1=2", "weight '1=2'"),
        ("helpful=much", "weight 'much'"),
    ],
)
def test_bad_objectives(text, message):
    with pytest.raises(BadInputError, match=message):
        parse_objectives(text, KNOWN)


def test_objectives_of_ones_own(tmp_path):
    file = tmp_path / "own.json"
    file.write_text('{"truthful": {"good": "truthful", "bad": "{deceptive}"}, "a b": {"good": " x ", "bad": "y"}}')
    own = read_objectives_file(file)
    assert own == {"truthful": Objective("truthful", "truthful", "{deceptive}"), "a b": Objective("a b", "x", "y")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no objective"),
        ({"a,b": {"good": "x", "bad": "y"}}, "'a,b' is no name"),
        ({"a=b": {"good": "x", "bad": "y"}}, "'a=b' is no name"),
        ({"": {"good": "x", "bad": "y"}}, "'' is no name"),
        ({" a": {"good": "x", "bad": "y"}}, "is no name"),
        ({"a": "x"}, "objective 'a' must be an object"),
        ({"a": {"good": "x"}}, "'bad' of objective 'a' is missing"),
        ({"a": {"good": "x", "bad": " "}}, "'bad' of objective 'a' is missing"),
        ({"a": {"good": 3, "bad": "y"}}, "'good' of objective 'a'"),
        ({"a": {"good": "x\ny", "bad": "y"}}, "'good' of objective 'a' must be one line"),
        ({"a": {"good": "x" * 300, "bad": "y"}}, "at most 200"),
        ({"a": {"good": "x", "bad": "y", "weight": 1}}, "objective 'a' has an unknown key 'weight'"),
    ],
)
def test_bad_objectives_files(tmp_path, content, message):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    with pytest.raises(BadInputError, match=message):
        read_objectives_file(file)


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadInputError, match="no such objectives file"):
        read_objectives_file(tmp_path / "none.json")
    (tmp_path / "twice.json").write_text('{"a": {"good": "x", "bad": "y"}, "a": {"good": "x", "bad": "y"}}')
    with pytest.raises(BadInputError, match="given twice"):
        read_objectives_file(tmp_path / "twice.json")
    (tmp_path / "big.json").write_bytes(b" " * 2_000_000)
    with pytest.raises(BadInputError, match="2000000 bytes"):
        read_objectives_file(tmp_path / "big.json")
