import hashlib

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.judge_kinds import JudgeOptions, judge_named
from alignez_bake.evaluation.protocol import AnswerSet
from tests.evaluation.classifiers import save_classifier

SERVER = "http://localhost:8000/v1"
RULES = "def judge(query, answer):\n    return query['sign'] * len(answer) / 100\n"


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return f"{path}:judge"


def named(address, **options):
    return judge_named(address, JudgeOptions(**options), device="cpu", batch_size=4, seed=0)


def test_rules(rules):
    judge = named(rules)
    sets = [
        AnswerSet({"query": "a", "sign": 1}, {"base": "12", "ours": "123"}),
        AnswerSet({"query": "b", "sign": -1}, {"base": "12", "ours": "12"}),
    ]
    judge.check()
    first, second = judge.judge(sets)
    assert first.scores == {"base": 0.02, "ours": 0.03}
    assert first.preferences == {("ours", "base"): 1}
    assert second.preferences == {("ours", "base"): 0}
    assert judge.good_above == 0
    assert named(rules, threshold=0.25).good_above == 0.25
    assert judge.settings["file_sha256"] == hashlib.sha256(RULES.encode()).hexdigest()


def test_a_folder(tmp_path):
    save_classifier(tmp_path / "judge", ("bad", "good"))
    judge = named(str(tmp_path / "judge"), label="good", reads="answer", threshold=0.75)
    assert (judge.label, judge.reads, judge.good_above, judge.batch_size) == (1, "answer", 0.75, 4)
    assert named(str(tmp_path / "judge"), label="bad").reads == "both"


def test_a_server(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-1")
    judge = named(SERVER, model="m", key_env="MY_KEY", criterion=" kinder ", tries=2, timeout=3.0)
    assert judge.client.key == "sk-1"
    assert (judge.client.tries, judge.client.timeout) == (2, 3.0)
    assert judge.criterion == "kinder"
    assert judge.good_above is None
    assert "sk-1" not in str(judge.settings) + repr(judge)
    assert named(SERVER, model="m").client.key is None


@pytest.mark.parametrize("address", [None, "", "rules", "rules.py", "ftp://host/v1", "user/judge"])
def test_unknown_judges_get_the_choices(address):
    with pytest.raises(
        BadInputError, match=r"give a function \(rules.py:function\), the folder of a classifier"
    ) as caught:
        named(address)
    assert "--judge-model" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say with --judge-model which of its models judges"),
        ({"model": ""}, "say with --judge-model which of its models judges"),
        ({"model": "m", "label": "good"}, "a server has no use for --judge-label"),
        ({"model": "m", "threshold": 0.5}, "a server has no use for --judge-threshold"),
        ({"model": "m", "reads": "both"}, "a server has no use for --judge-reads"),
        ({"model": "m", "criterion": " "}, "--judge-criterion is empty"),
        ({"model": "m", "tries": 0}, "at least one try"),
        ({"threshold": float("nan")}, "--judge-threshold nan must be finite"),
    ],
)
def test_options_of_a_server(options, message):
    with pytest.raises(BadInputError, match=message):
        named(SERVER, **options)


def test_a_key_that_is_given_instead_of_its_variables_name_is_not_repeated():
    with pytest.raises(BadInputError, match="names no environment variable that is set") as caught:
        named(SERVER, model="m", key_env="skverysecret")
    assert "skverysecret" not in str(caught.value)


@pytest.mark.parametrize("option", ["label", "reads", "model", "criterion", "key_env", "tries", "timeout"])
def test_rules_know_a_threshold_alone(rules, option):
    with pytest.raises(BadInputError, match=f"a judge of rules has no use for --judge-{option.replace('_', '-')}"):
        named(rules, **{option: "both"})


@pytest.mark.parametrize("option", ["model", "criterion", "key_env", "tries", "timeout"])
def test_classifiers_know_no_options_of_servers(tmp_path, option):
    with pytest.raises(BadInputError, match=f"a classifier has no use for --judge-{option.replace('_', '-')}"):
        named(str(tmp_path), **{option: "1"})


def test_what_a_classifier_can_read(tmp_path):
    with pytest.raises(BadInputError, match="--judge-reads 'query' is unknown: use both or answer"):
        named(str(tmp_path), reads="query")
