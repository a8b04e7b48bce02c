import sys

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.judge import load_judge


@pytest.fixture
def judge(tmp_path):
    def make(source, name="judge"):
        path = tmp_path / "rules.py"
        path.write_text(source)
        return load_judge(f"{path}:{name}")

    return make


def test_a_judge_from_a_file(judge):
    before = set(sys.modules)
    rules = judge(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Rule:\n"
        "    word: 'str'\n"
        "def judge(query, answer):\n"
        "    return 1 if Rule(query['word']).word in answer else -1.0\n"
    )
    assert rules({"query": "a", "word": "lemon"}, "with lemon") == 1.0
    assert rules({"query": "a", "word": "lemon"}, "with soap") == -1.0
    assert not any("judge" in name for name in set(sys.modules) - before)


def test_a_judge_cannot_change_the_query(judge):
    query = {"query": "a"}
    judge("def judge(query, answer):\n    query.clear()\n    return 0\n")(query, "")
    assert query == {"query": "a"}


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("", "judge", "has no function 'judge'"),
        ("judge = 3", "judge", "has no function 'judge'"),
        ("def judge(:", "judge", "rules.py fails: SyntaxError"),
        ("import not_there_at_all", "judge", "fails: ModuleNotFoundError"),
        ("", "not a name", "must be a Python file and a function"),
    ],
)
def test_judges_that_cannot_be_loaded(judge, source, name, message):
    with pytest.raises(BadInputError, match=message):
        judge(source, name)


@pytest.mark.parametrize("address", ["rules.py", ":judge", "none.py:judge", "tests:judge", ""])
def test_addresses_that_are_none(address):
    with pytest.raises(BadInputError, match=r"judge '.*'"):
        load_judge(address)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("2", "returned 2: it must return a number from -1 to 1"),
        ("None", "returned None"),
        ("float('nan')", "returned nan"),
        ("query['material']", "failed for the query 'why': KeyError: 'material'"),
    ],
)
def test_judges_that_fail(judge, result, message):
    with pytest.raises(BadInputError, match=message):
        judge(f"def judge(query, answer):\n    return {result}\n")({"query": "why"}, "")
