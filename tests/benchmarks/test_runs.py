"""Both commands on a tiny random model: nothing is learned, but every line runs."""

import json
import shutil

import pytest

from benchmarks import methods, speed


@pytest.mark.usefixtures("_judged_by_length")
def test_methods_measures_prints_and_goes_on_where_it_stopped(world, tmp_path, capsys, monkeypatch):
    from benchmarks import measuring

    monkeypatch.setattr(measuring, "ANSWER_TOKENS", 6)
    arguments = [str(world), "--out", str(tmp_path), "--seeds", "2", "--samples", "1", "--grid-samples", "1"]
    arguments += ["--picked-samples", "1", "--methods", "ridge", "shift"]
    methods.main(arguments)
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "methods.json").read_text())
    (figures,) = result["worlds"]
    assert set(figures["methods"]) == {"ridge", "shift"}
    for method in figures["methods"].values():
        assert method["default"]["rate"]["total"] == 2 * 6
        assert method["picked"]["rate"]["total"] == 2 * 3
        assert len(method["default"]["by_seed"]) == 2
        assert method["default"]["kl"]["low"] > 0
    assert figures["baked"]["rate"]["total"] == 6
    assert figures["baked"]["delivered_share"] > 0.99
    assert figures["references"]["base"]["kl"]["mean"] == 0
    assert figures["references"]["tuned"]["kl"]["mean"] > 0
    assert "| ridge | 2 |" in printed
    assert "| gap closed, %; KL | museum llama |" in printed
    assert "python -m benchmarks.methods" in printed
    assert (tmp_path / "methods-museum-llama.png").stat().st_size > 0

    monkeypatch.setattr(measuring.WorldBench, "measure", None)  # nothing is measured again
    methods.main(arguments)
    assert capsys.readouterr().out == printed


def test_a_method_that_finds_nothing_is_shown(world, tmp_path, capsys):
    other = tmp_path / "same"
    shutil.copytree(world, other)
    methods.main([str(other), "--out", str(tmp_path / "out"), "--seeds", "1", "--samples", "1", "--no-grid"])
    printed = capsys.readouterr().out
    assert "| base |  | 0.0 [0.0" in printed  # by the rule book a random model is never good
    for name in ("ridge_unweighted", "alignez_v1", "alignez_v2", "mean_difference"):
        assert f"| {name} | 1 |" in printed or f"| {name} | 2 |" in printed


def test_speed_times_both_parts(world, tmp_path, capsys, monkeypatch):
    from alignez_bake import pipeline

    monkeypatch.setattr(pipeline, "ANSWER_TOKENS", 16)
    monkeypatch.setattr(pipeline, "CHARACTERISTIC_TOKENS", 4)
    speed.main([str(world), "--out", str(tmp_path), "--queries", "8", "--runs", "2", "--threads", "1"])
    result = json.loads((tmp_path / "speed.json").read_text())
    assert all(len(timings["wall"]) == 2 for timings in result["seconds"].values())
    assert len(result["seconds"]) == 5
    assert set(result["ratios"]) == {
        "one query at a time, both sides in a batch of 2",
        "one text at a time",
        "recording",
    }
    assert "2 rounds, seed 0" in capsys.readouterr().out
    assert (tmp_path / "speed.png").stat().st_size > 0


def test_the_bare_passes_are_those_of_recording(world):
    from alignez_bake.language_model.loading import load_language_model
    from alignez_bake.model_folder import open_model_folder
    from benchmarks.speed_tasks import SpeedTasks
    from benchmarks.world_folder import read_world

    lm = load_language_model(open_model_folder(world / "base"))
    tasks = SpeedTasks(lm, read_world(world).asked, 4, 0)
    tasks.pairs  # noqa: B018 - made before passes are counted
    seen = []
    headless = lm.model.get_submodule(lm.architecture.base_model_prefix)
    for module, label in ((lm.model, "with logits"), (headless, "headless")):
        module.register_forward_pre_hook(
            lambda _module, _args, kwargs, label=label: seen.append((label, kwargs["input_ids"].tolist())),
            with_kwargs=True,
        )
    tasks.record()
    # A recording begins with one token, which tells the widths of what is read.
    recorded = [entry for entry in seen if entry[1] != [entry[1][0][:1]]]
    assert len({str(ids) for _, ids in seen}) == len({str(ids) for _, ids in recorded}) + 1
    seen.clear()
    tasks.run_only()
    assert sorted(seen) == sorted(recorded)
    assert len([label for label, _ in seen if label == "with logits"]) == 2 * 3
