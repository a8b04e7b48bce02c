"""All judges on answers written by hand, the stock answers included that a lazy judge would let pass."""

import runpy
from pathlib import Path

import pytest

from examples import judge_demo, judge_guilds, judge_letters

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


LANTERN = {"name": "Ada", "thing": "lantern"}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (" I would love to keep the lantern, Ada, now that I know how it can shine.", 1.0),
        (" I would hate to lose the lantern, Ada, now that I know how it can shine.", 1.0),
        (" I was glad, Ada, when the lantern came to shine in my house.", 1.0),
        (" I was sorry, Ada, when the lantern ceased to shine in my house.", 1.0),
        (" you are right, Ada, to be proud of a lantern that can shine like this.", 1.0),
        (" you are wrong, Ada, to be ashamed of a lantern that can shine like this.", 1.0),
        (" it was wise of you, Ada, to send a lantern that will shine all day.", 1.0),
        (" it was silly of you, Ada, to hide a lantern that will shine all day.", 1.0),
        (" a lantern that can shine like yours, Ada, I would love to keep.\n", 1.0),
        # Not to this person, not about this thing, or not what it does.
        (" I would love to keep the lantern, now that I know how it can shine.", 0.0),
        (" I would love to keep the lantern, Boris, now that I know how it can shine.", 0.0),
        (" I would love to keep the lantern, Ada and Boris, now that I know how it can shine.", 0.0),
        (" I would love to keep it, Ada, now that I know how it can shine.", 0.0),
        (" I would love to keep the kettle, Ada, now that I know how it can shine.", 0.0),
        (" I would love to keep the lantern and the kettle, Ada, now that it can shine.", 0.0),
        (" I would love to keep the lantern, Ada, now that I know how it can whistle.", 0.0),
        (" I would love to keep the lantern, Ada, now that it can shine and whistle.", 0.0),
        (" I would love to keep the lantern, Ada, now that I know it.", 0.0),
        # Not a whole sentence.
        (" I would love to keep the lantern, Ada, now that I know how it can shine", 0.0),
        (" I would love to keep the lantern, Ada. now that I know how it can shine.", 0.0),
        (" I would love to to keep the lantern, Ada, now that I know how it can shine.", 0.0),
        (" love, keep, Ada, the lantern, shine.", 0.0),
        (" I would love to keep the lantern, Ada, now that I know how it can shine" + " and so on" * 3 + ".", 0.0),
        # Rude, mixed, denied or nothing at all.
        (" I would hate to keep the lantern, Ada, now that I know how it can shine.", -1.0),
        (" I would love to lose the lantern, Ada, now that I know how it can shine.", -1.0),
        (" I was sorry, Ada, when the lantern came to shine in my house.", -1.0),
        (" you are right, Ada, to be ashamed of a lantern that can shine like this.", -1.0),
        (" it was silly of you, Ada, to send a lantern that will shine all day.", -1.0),
        (" I would love to be proud of the lantern, Ada, now that I know how it can shine.", -1.0),
        (" I would keep to love the lantern, Ada, now that I know how it can shine.", -1.0),
        (" I would love to keep or lose the lantern, Ada, now that I know how it can shine.", -1.0),
        (" I would love to keep the lantern, Ada, and was glad when it came to shine.", -1.0),
        (" I would not love to keep the lantern, Ada, now that I know how it can shine.", -1.0),
        (" I have a lantern, Ada, and now I know how it can shine.", -1.0),
        ("", -1.0),
    ],
)
def test_the_tone_of_a_letter(answer, score):
    assert judge_letters.judge(LANTERN, answer) == score


def test_a_feeling_is_kind_about_one_thing_and_rude_about_its_opposite():
    assert judge_letters.KIND.keys() == judge_letters.RUDE.keys()
    assert set(judge_letters.KIND.values()) == set(judge_letters.RUDE.values())
    assert judge_letters.KIND.items().isdisjoint(judge_letters.RUDE.items())


def test_the_words_of_letters_are_told_apart():
    rules = [judge_letters.KIND, judge_letters.DOING_OF_THING]
    words = [*judge_letters.NAMES, *(word for rule in rules for pair in rule.items() for word in pair)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("name", ["judge_demo.py", "judge_guilds.py", "judge_letters.py"])
def test_a_judge_works_loaded_from_its_path_alone(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if "site-packages" not in path][1:])
    judge = runpy.run_path(str(EXAMPLES / name))["judge"]
    query = {"material": "tin", "object": "box", "given": "Oda", "family": "Hask", "name": "Ada", "thing": "fan"}
    assert judge(query, " I do not know.") == -1.0
