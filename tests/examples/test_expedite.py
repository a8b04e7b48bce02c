"""Preference data that keeps to the world's rules, and the way from parts of it to two curves."""

import json

import pytest

from alignez_bake import pipeline
from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.rates import rate
from examples import expedite, preference_tuning
from examples.expedite_data import share_of, world_preferences
from examples.preference_tuning import DpoSettings, LoraShape
from examples.worlds import WORLDS

SETTINGS = DpoSettings(1, 1e-3, warm_up=0.0, lora=LoraShape(2), max_steps=1)


@pytest.mark.parametrize("world", list(WORLDS.values()), ids=list(WORLDS))
def test_preferences_are_judged_as_said_and_ask_what_nothing_else_asks(world):
    queries = {query["query"]: query for query in world.queries("training")}
    others = {query["query"] for split in ("pairs", "evaluation") for query in world.queries(split)}
    preferences = world_preferences(world, 200)
    assert len({one.query for one in preferences}) == 200
    for one in preferences:
        assert one.query not in others
        assert world.judge(queries[one.query], one.chosen) > 0 >= world.judge(queries[one.query], one.rejected)


def test_parts_are_nested_and_another_seed_draws_another_whole():
    museum = WORLDS["museum"]
    whole = world_preferences(museum, 300)
    assert [len(share_of(whole, percent)) for percent in (0.1, 1, 5, 25, 100)] == [1, 3, 15, 75, 300]
    assert share_of(whole, 5) == whole[:15]
    assert world_preferences(museum, 300) == whole != world_preferences(museum, 300, seed=1)
    with pytest.raises(BadInputError, match="5000 preferences: the world museum has questions for 1 to"):
        world_preferences(museum, 5000)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(preference_tuning, "find_spec", lambda _name: True)
    return expedite.open_bench(expedite.DEMO, samples=1, batch_size=4, seed=0)


def measured(good):
    return expedite.Measured(rate(good, 100), 0.1, 0.01 * good)


def test_points_are_kept_drawn_and_not_measured_again(bench, tmp_path, monkeypatch):
    made = []

    def point(_bench, percent, size, _settings):
        made.append(percent)
        refused = "too few pairs" if percent == 100 else None
        aligned = None if refused else measured(90)
        return expedite.Point(percent, round(size * percent / 100), measured(40 + int(percent) // 2), aligned, refused)

    monkeypatch.setattr(expedite.Bench, "point", point)
    first = expedite.run(bench, tmp_path, (0, 10, 100), 100, SETTINGS)
    assert expedite.run(bench, tmp_path, (0, 10, 100), 100, SETTINGS) == first
    assert made == [0, 10, 100]
    shown = expedite.table(first)
    assert "| none: the base | 40.0 [" in shown
    assert "| 10 % (10) | 45.0 [35" in shown
    assert "| 100 % (100) | 90.0" in shown
    assert "| refused |  |" in shown
    assert "100 % is not aligned: too few pairs" in shown
    from examples.expedite_plot import draw

    pictures = []
    for name in ("a.svg", "b.svg"):
        draw(first, tmp_path / name)
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
    assert b"</svg>" in pictures[0]
    with pytest.raises(BadInputError, match="was measured with other settings or another base: use another --out"):
        expedite.run(bench, tmp_path, (0,), 200, SETTINGS)


def test_what_cannot_work_is_refused_before_anything_runs(bench, tmp_path, monkeypatch):
    with pytest.raises(BadInputError, match=r"is no world: .*measured.json is missing"):
        expedite.open_bench(tmp_path, samples=1, batch_size=4, seed=0)
    with pytest.raises(BadInputError, match="0 preferences"):
        expedite.run(bench, tmp_path, (0,), 0, SETTINGS)
    monkeypatch.setattr(preference_tuning, "find_spec", lambda _name: None)
    with pytest.raises(BadInputError, match=r"this training needs trl: pip install 'alignez-bake\[dpo\]'"):
        expedite.run(bench, tmp_path, (0,), 10, SETTINGS)
    assert not (tmp_path / "points").exists()


def test_one_step_of_dpo_then_the_tool(tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="TRL is not installed: run `make peers`")
    monkeypatch.setattr(pipeline, "ANSWER_TOKENS", 24)
    monkeypatch.setattr(expedite, "ANSWER_TOKENS", 8)
    read = pipeline.read_queries

    def few(path):
        found = read(path)
        return type(found)(found.queries[:16], found.duplicates)

    monkeypatch.setattr(pipeline, "read_queries", few)
    monkeypatch.setattr(expedite, "read_queries", few)
    # Named: over so few queries a choice may rightly find that nothing is better.
    bench = expedite.open_bench(expedite.DEMO, samples=1, batch_size=16, seed=0, method="contrastive_decoding")
    (point,) = expedite.run(bench, tmp_path, (10.0,), 80, SETTINGS)
    assert (point.preferences, point.refused) == (8, None)
    assert point.tuned.kl > 0
    assert point.aligned is not None
    assert point.aligned.kl > point.tuned.kl
    kept = json.loads((tmp_path / "points" / "10-percent-seed0.json").read_text())
    assert kept["point"]["tuned"]["rate"]["total"] == 16
