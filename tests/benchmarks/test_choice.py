"""The benchmark of the default choice: every line runs, and its tables say what its runs hold."""

import json
import shutil

import pytest

from alignez_bake.tuning.offered import LADDER
from benchmarks import choice
from benchmarks.choice_tables import choice_tables
from examples.worlds import WORLDS


@pytest.fixture
def larger(world, tmp_path):
    """The same world with more queries than a choice takes."""
    folder = tmp_path / "world"
    shutil.copytree(world, folder)
    queries = WORLDS["museum"].queries("pairs")[:27]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    return folder


@pytest.mark.usefixtures("_judged_by_length")
def test_it_measures_every_candidate_and_goes_on_where_it_stopped(larger, tmp_path, capsys, monkeypatch):
    from benchmarks import measuring

    monkeypatch.setattr(measuring, "ANSWER_TOKENS", 6)
    arguments = [str(larger), "--out", str(tmp_path / "out"), "--seeds", "1", "--samples", "1", "--queries", "16"]
    choice.main(arguments)
    printed = capsys.readouterr().out
    (run,) = json.loads((tmp_path / "out" / "choice.json").read_text())["runs"]
    assert run["tuning"]["queries"] == 8  # a third of 27 is 9
    assert {"base", "tuned", "contrastive_decoding-1.5", "ridge-2"} <= set(run["models"])
    assert {model["answers"] for model in run["models"].values()} == {6}
    assert run["models"]["ridge-2"]["kl"] > 0
    assert {"base", "tuned"} <= set(run["under_bad_persona"])
    assert run["models"]["base"]["kl"] == 0
    points = {point["candidate"] for point in run["tuning"]["points"]}
    assert {f"{rung.method}-{strength:g}" for rung in LADDER for strength in rung.first} < points
    assert all(seconds > 0 for seconds in run["cpu_seconds"].values())
    assert f"| museum llama, 0 | {100 * run['models']['base']['good'] / 6:.1f} |" in printed
    assert "python -m benchmarks.choice" in printed

    monkeypatch.setattr(choice, "_run", None)  # nothing is measured again
    choice.main(arguments)
    assert capsys.readouterr().out == printed


def planted(seed, chosen, good):
    def model(count):
        return {"good": count, "answers": 100, "loss": 0.5, "kl": 0.01}

    counts = {"base": 50, "base, good persona": 80, "tuned": 90, "ridge-2": good}
    point = {"candidate": "ridge-2", "rate": {"value": 0.75}}
    return {
        "world": "w",
        "seed": seed,
        "chosen": chosen,
        "tuning": {"points": [point]},
        "cpu_seconds": {"pairs": 4.0, "capture": 2.0, "tuning": 9.0},
        "models": {name: model(count) for name, count in counts.items()},
        "under_bad_persona": {"base": 5.0, "tuned": 70.0} | ({} if chosen is None else {"chosen": 10.0 + seed}),
        "halves": {"best of grid": "ridge-2", "gap": {"best of grid": 71.0}},
    }


def test_tables_of_planted_runs():
    text = "\n".join(choice_tables([planted(0, "ridge-2", 70), planted(1, None, 80)]))
    assert "| w, 0 | 50.0 | 80.0 | 90.0 | ridge-2 | 70.0 | 50.0 | 75.0 |" in text
    assert "| w, 1 | 50.0 | 80.0 | 90.0 | nothing | - | - | - |" in text
    assert "-, 71.0 (ridge-2) | 4.0, 2.0, 9.0 | 1.50 |" in text
    assert "| ridge-2 | 62.5 (50.0 to 75.0) |" in text
    assert "| base | 5.0 (5.0 to 5.0) |" in text
    assert "| chosen | 10.0 (10.0 to 10.0) |" in text  # of the one run that chose something
