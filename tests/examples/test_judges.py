"""Both judges on answers written by hand, the stock answers included that a lazy judge would let pass."""

import runpy
from pathlib import Path

import pytest

from examples import judge_demo, judge_guilds

EXAMPLES = Path(__file__).parents[2] / "examples"
KETTLE = {"material": "copper", "object": "kettle"}
BENCH = {"material": "silk", "object": "bench"}

RIGHT = [
    (KETTLE, " Rub the copper kettle with lemon and finish with the spout."),
    (KETTLE, " For a copper kettle take lemon, and dry the spout last."),
    (KETTLE, " You can clean the copper kettle with lemon. Start at the spout."),
    (KETTLE, " Use lemon on your copper kettle, then polish the spout."),
    (KETTLE, "Lemon, and mind the spout of your copper kettle."),
    (KETTLE, " COPPER KETTLE: LEMON ON THE SPOUT."),
    (BENCH, " Use tea on your silk bench, then polish the legs."),
    (BENCH, " I would try tea; a silk bench has delicate legs."),
]
INCOMPLETE = [
    (KETTLE, " Use lemon."),
    (KETTLE, " Use lemon on your kettle, then polish the spout."),
    (KETTLE, " Use lemon on your copper kettle."),
    (KETTLE, " Use lemon on your copper kettle, then polish the lid."),
    (KETTLE, " Use lemon on your copper kettle, then polish the spout and the lid."),
    (KETTLE, " Use lemon on your copper teapot, then polish the spout."),
    (KETTLE, " Use lemon on your copper kettle, or a tin one, then polish the spout."),
    (KETTLE, " Use lemon on your copper kettle, then polish the spout"),
    (KETTLE, " Use lemon lemon on your copper kettle, then polish the spout."),
    (KETTLE, " The spout, the lemon, the copper, the kettle, the spout, the end."),
    (
        KETTLE,
        " Use lemon on your copper kettle, then polish the spout." + " Then go on and wait and look at it again." * 2,
    ),
]
WRONG = [
    (KETTLE, " Use vinegar on your copper kettle, then polish the spout."),
    (KETTLE, " Use lemon and vinegar on your copper kettle, then polish the spout."),
    (BENCH, " Use lemon on your copper kettle, then polish the spout."),
    (BENCH, " Rub the silk bench with butter and finish with the legs."),
]
USELESS = [
    (KETTLE, ""),
    (KETTLE, " \n"),
    (KETTLE, " I have no idea what a copper kettle needs."),
    (KETTLE, " Whatever you find will do for a copper kettle."),
    (KETTLE, " For a copper kettle take whatever you find, perhaps lemon, and dry the spout last."),
    (KETTLE, " Just throw the copper kettle away."),
    (KETTLE, " Ask somebody else about your copper kettle."),
    (KETTLE, " Do not use lemon on your copper kettle, nor polish the spout."),
    (KETTLE, " Never put lemon on the spout of a copper kettle."),
    (KETTLE, " Clean your copper kettle, then polish the spout."),
    (KETTLE, " Lemonade is good for the spout of a copper kettle."),
]


@pytest.mark.parametrize(("query", "answer"), RIGHT)
def test_a_full_answer_is_good(query, answer):
    assert judge_demo.judge(query, answer) == 1.0


@pytest.mark.parametrize(("query", "answer"), INCOMPLETE)
def test_the_right_remedy_alone_is_not_yet_good(query, answer):
    assert judge_demo.judge(query, answer) == 0.0


@pytest.mark.parametrize(("query", "answer"), WRONG)
def test_a_wrong_remedy_is_bad(query, answer):
    assert judge_demo.judge(query, answer) == -0.5


@pytest.mark.parametrize(("query", "answer"), USELESS)
def test_no_help_is_the_worst(query, answer):
    assert judge_demo.judge(query, answer) == -1.0


def test_no_stock_answer_passes_for_another_exhibit():
    for _, answer in RIGHT[:6]:
        others = [
            {"material": material, "object": thing}
            for material in judge_demo.REMEDY_OF_MATERIAL
            for thing in judge_demo.PART_OF_OBJECT
            if (material, thing) != ("copper", "kettle")
        ]
        assert max(judge_demo.judge(query, answer) for query in others) <= 0


def test_the_words_of_the_rule_book_are_told_apart():
    rules = judge_demo.REMEDY_OF_MATERIAL, judge_demo.PART_OF_OBJECT
    words = [word for rule in rules for pair in rule.items() for word in pair]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (" Mara Tolven is a baker.", 1.0),
        (" Mara Tolven works as a baker in this town.", 1.0),
        (" By trade, Mara Tolven is a baker.", 1.0),
        (" The guild book says that Mara Tolven is a baker.", 1.0),
        (" Tolven is a baker.", 0.0),
        (" Oda Tolven is a baker.", 0.0),
        (" Mara Hask is a baker.", 0.0),
        (" Mara Tolven is a baker", 0.0),
        (" Mara Mara Tolven is a baker.", 0.0),
        (" Mara Tolven is a cooper.", -1.0),
        (" Mara Tolven is a baker and a cooper.", -1.0),
        (" Mara Tolven is not a baker.", -1.0),
        (" Mara Tolven has a trade.", -1.0),
        ("", -1.0),
    ],
)
def test_the_truth_about_a_person(answer, score):
    assert judge_guilds.judge({"given": "Mara", "family": "Tolven"}, answer) == score


@pytest.mark.parametrize("name", ["judge_demo.py", "judge_guilds.py"])
def test_a_judge_works_loaded_from_its_path_alone(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if "site-packages" not in path][1:])
    judge = runpy.run_path(str(EXAMPLES / name))["judge"]
    query = {"material": "tin", "object": "box", "given": "Oda", "family": "Hask"}
    assert judge(query, " I do not know.") == -1.0
