import pytest

from alignez_bake.pipeline import Asked
from alignez_bake.progress import NoProgress
from benchmarks import readme
from benchmarks.cells import Cell, CellStore, Measured
from benchmarks.comparison import Comparison, Sizes
from benchmarks.subjects import BASE, SUBJECTS, TUNED
from benchmarks.timing import Ratio, Timings, taking_turns
from benchmarks.world_folder import WorldFolder, halves

SIZES = Sizes(seeds=(0, 1), samples=2, grid_samples=1, picked_samples=1, subjects=("ridge",))


def world(tmp_path):
    return WorldFolder(
        "w", tmp_path, tmp_path, Asked((), {}, (), 0), ({"query": "a"}, {"query": "b"}), (0,), (1,), (), (), None
    )


def test_halves_share_no_subject_and_lose_no_query():
    subjects = ["a", "b", "a", "c", "b", "d"]
    first, second = halves(subjects)
    assert sorted(first + second) == list(range(6))
    assert not {subjects[place] for place in first} & {subjects[place] for place in second}


def test_the_defaults_are_in_the_grids():
    assert all(subject.method.default_strength in subject.grid for subject in SUBJECTS.values())


def test_rates_pool_seeds_and_the_gap_is_between_base_and_tuned(tmp_path):
    found = {}
    for seed, ours in ((0, (2, 1)), (1, (1, 1))):
        found[Cell("w", BASE, None, seed, "all", 2)] = Measured(good=(1, 0), loss=0.5)
        found[Cell("w", TUNED, None, seed, "all", 2)] = Measured(good=(2, 2), loss=0.25)
        found[Cell("w", "ridge", 2.0, seed, "all", 2)] = Measured(good=ours, loss=0.25 * (seed + 1), seconds={"fit": 1})
    figures = Comparison(world(tmp_path), SIZES).figures(found.get)
    default = figures.methods["ridge"].default
    assert (default.rate.successes, default.rate.total) == (5, 8)
    assert default.by_seed == (0.75, 0.5)
    # Base 2/8, tuned 8/8.
    assert default.gap.mean == pytest.approx(50.0)
    assert (default.gap.low, default.gap.high) == pytest.approx((100 / 3, 200 / 3))
    assert (default.loss.low, default.loss.high) == (0.25, 0.5)
    # On the second half: base 0/4, tuned 4/4, ours 2/4.
    assert figures.methods["ridge"].default_second_half.gap.mean == pytest.approx(50.0)
    assert figures.methods["ridge"].picked is None


def test_the_best_strength_of_each_seed_is_picked_on_the_first_half_and_scored_on_the_second(tmp_path):
    comparison = Comparison(world(tmp_path), SIZES)
    found = {cell: Measured(good=(0,)) for cell in comparison.grid_cells()}
    best = {0: 3.0, 1: 1.0}
    for seed, strength in best.items():
        found[Cell("w", "ridge", strength, seed, "first_half", 1)] = Measured(good=(1,))
    found[Cell("w", "ridge", 4.0, 0, "first_half", 1)] = Measured(good=(1,))  # as good, but less gentle
    cells = comparison.picked_cells(found.get)
    assert [(cell.seed, cell.strength, cell.part) for cell in cells] == [
        (0, 3.0, "second_half"),
        (1, 1.0, "second_half"),
    ]
    del found[Cell("w", "ridge", 0.5, 1, "first_half", 1)]
    assert [cell.seed for cell in comparison.picked_cells(found.get)] == [0]


def test_finished_cells_are_kept_and_never_mixed_with_other_settings(tmp_path):
    store = CellStore(tmp_path, {"batch_size": 4})
    cell = Cell("w x", "ridge", 2.0, 0, "all", 3)
    assert store.get(cell) is None
    measured = Measured(good=(1, 3), loss=0.5, seconds={"fit": 0.1})
    store.put(cell, measured)
    again = CellStore(tmp_path, {"batch_size": 4})
    assert again.get(cell) == measured
    for other in (
        ("w x", "ridge", 2.0, 1, "all", 3),
        ("w x", "ridge", 1.0, 0, "all", 3),
        ("w", "ridge", 2.0, 0, "all", 3),
    ):
        assert again.get(Cell(*other)) is None
    with pytest.raises(SystemExit, match="other models or settings"):
        CellStore(tmp_path, {"batch_size": 5})


def test_tasks_take_turns():
    order = []
    timings = taking_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, runs=3, title="", progress=NoProgress()
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert all(len(timing.wall) == 3 for timing in timings.values())


def test_ratios_are_of_medians_and_within_rounds():
    ratio = Ratio.of(Timings((6.0, 8.0, 30.0), (6.0, 6.0, 6.0)), Timings((1.0, 2.0, 3.0), (1.0, 1.0, 1.0)))
    assert (ratio.medians, ratio.low, ratio.high, ratio.processor) == (4.0, 4.0, 10.0, 6.0)


def test_the_readme_shows_the_committed_tables():
    text = (readme.FOLDER / "README.md").read_text(encoding="utf-8")
    assert readme.with_tables(text, readme.FOLDER / "results") == text
    assert readme.with_tables("<!-- begin speed.md -->\nold\n<!-- end -->", readme.FOLDER / "results").count("old") == 0
