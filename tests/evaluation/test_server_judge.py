import pytest

from alignez_bake.evaluation.chat_client import chat_client
from alignez_bake.evaluation.protocol import AnswerSet
from alignez_bake.evaluation.server_judge import ServerJudge, _verdict
from tests.evaluation.judge_server import judge_server, prefers

SETS = [
    AnswerSet({"query": "How?"}, {"base": " bad", "ours": " good", "tuned": " good too"}),
    AnswerSet({"query": "Why {query}?"}, {"base": " good", "ours": " bad", "tuned": " worse {first}"}),
]
OURS, TUNED, BOTH = ("ours", "base"), ("tuned", "base"), ("ours", "tuned")


def judge(server, **settings):
    client = chat_client(server.url, "judge", None, tries=1, timeout=60.0, seed=0)
    return ServerJudge(client, **settings)


def test_preferences_that_do_not_hang_on_the_order():
    with judge_server(prefers("good")) as server:
        first, second = judge(server).judge(SETS)
    assert first.preferences == {OURS: 1, TUNED: 1, BOTH: 0}
    assert second.preferences == {OURS: -1, TUNED: -1, BOTH: 0}
    assert first.scores == {}
    assert (first.order_dependent, first.unreadable) == (0, ())
    # Each pair in both orders, as given and swapped.
    shown = [request.answers for request in server.requests[:6]]
    assert shown == [
        ("good", "bad"), ("bad", "good"),
        ("good", "good too"), ("good too", "good"),
        ("good too", "bad"), ("bad", "good too"),
    ]  # fmt: skip


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_of_positions_decides_nothing(letter):
    with judge_server(lambda _: letter) as server:
        (judged,) = judge(server).judge(SETS[:1])
    assert judged.preferences == {OURS: 0, TUNED: 0, BOTH: 0}
    assert judged.order_dependent == 3


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie():
    with judge_server(lambda request: "A" if request.answers[0] == "good" else "C") as server:
        (judged,) = judge(server).judge(SETS[:1])
    assert judged.preferences[OURS] == 0
    assert judged.order_dependent == 2


def test_rubbish_is_no_verdict_and_is_counted():
    def reply(request):
        return "The first, I think." if request.answers[0] == "bad" else prefers("good")(request)

    with judge_server(reply) as server:
        (judged,) = judge(server).judge(SETS[:1])
    assert judged.preferences == {OURS: None, TUNED: None, BOTH: 0}
    assert judged.unreadable == ("'The first, I think.'",) * 2
    assert judged.order_dependent == 0


def test_equal_answers_tie_unasked():
    with judge_server(lambda _: "A") as server:
        (judged,) = judge(server).judge([AnswerSet({"query": "How?"}, {"base": " same", "ours": "same "})])
    assert judged.preferences == {OURS: 0}
    assert judged.order_dependent == 0
    assert server.requests == []


def test_the_question_holds_query_answers_and_criterion():
    with judge_server(prefers("good")) as server:
        judge(server, criterion="more truthful").judge(SETS[1:])
    question = server.requests[2].question
    assert "Why {query}?" in question
    assert "worse {first}" in question
    assert "Which answer is more truthful?" in question


def test_another_criterion_is_another_judge():
    with judge_server(prefers("good")) as server:
        assert judge(server).settings != judge(server, criterion="kinder").settings
        assert judge(server).settings["kind"] == "server"


def test_a_check_asks_once():
    with judge_server(lambda _: "nonsense") as server:
        judge(server).check()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", 1), (" B\n", -1), ("C.", 0), ("**A**", 1), ("[[B]]", -1), ('"A"', 1), ("(C):", 0),
        ("", None), ("D", None), ("a", None), ("AB", None), ("A or B", None), ("Answer A", None), ("A\nB", None),
        ("А", None),  # Cyrillic
    ],
)  # fmt: skip
def test_only_a_letter_is_a_verdict(reply, verdict):
    assert _verdict(reply) == verdict
