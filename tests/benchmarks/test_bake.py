"""The benchmark of bakes at a tiny size: what it runs, what it writes, and what it leaves behind."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from benchmarks import bake, bake_measuring, bake_running, bake_subjects
from benchmarks.bake_edits import plan_of, quarter_of, share_in
from benchmarks.bake_measuring import Asked, SizeFigures, measure_size
from benchmarks.bake_models import CONFIGS, tensor_shapes, weight_bytes, write_checkpoint
from benchmarks.bake_running import Run
from benchmarks.bake_subjects import (
    BAKE,
    COPY,
    INPUT,
    LINK,
    MERGEKIT,
    PEFT,
    SUBJECTS,
    Place,
    command_of,
    missing,
    too_large,
)
from benchmarks.bake_tables import memory_table, peft_line, size_table, slope

SHARD = 2_000_000
WEIGHTS = weight_bytes(CONFIGS["tiny"])


@pytest.fixture(autouse=True)
def _machine_keeps_its_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(bake_running, "DROP_CACHES", tmp_path / "not there")


def asked(*names, mergekit_python=None, rounds=1):
    return Asked(rounds, "middle", dict.fromkeys(names), mergekit_python, verify=False)


def fake_mergekit(folder, script):
    folder.mkdir()
    (folder / "mergekit-yaml").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "mergekit-yaml").chmod(0o755)
    return folder / "python"


def run_of(wall, anonymous=1):
    return Run(wall, wall, anonymous, anonymous, 10, 10)


def test_it_measures_verifies_prints_and_cleans_up(tmp_path, capsys, monkeypatch):
    verified = []
    ours = bake_measuring._ours
    monkeypatch.setattr(bake_measuring, "_ours", lambda *a: (verified.append(a[0]), ours(*a)))
    monkeypatch.setattr(bake_measuring, "MOST_COLD_BYTES", 0)
    monkeypatch.setattr(bake_subjects, "_help_of_bake", lambda: "no such flag")
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = ["--sizes", "tiny", "--rounds", "1", "--shard-bytes", str(SHARD), "--peers", "--verify"]
    bake.main([*arguments, "--out", str(out), "--workdir", str(work)])
    assert verified == ["bake", "verify", "verify"]  # the adapter for peft, and what was baked
    assert list(work.iterdir()) == []
    assert sorted(file.name for file in out.iterdir()) == ["bake.json", "bake.md", "bake.png"]
    assert (out / "bake.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert printed == (out / "bake.md").read_text() + "\n"
    result = json.loads((out / "bake.json").read_text())
    assert result["rounds"] == 1
    assert result["rank"] == 16
    assert result["skipped_sizes"] == {}
    tiny = result["sizes"]["tiny"]
    assert tiny["weights_bytes"] == WEIGHTS
    assert tiny["shards"] > 1
    assert tiny["left_out"] == {LINK: "this version of bake has no --link", MERGEKIT: "no --mergekit-python"}
    assert {name: len(runs) for name, runs in tiny["runs"]["warm"].items()} == {COPY: 1, BAKE: 1, INPUT: 1, PEFT: 1}
    assert "cold" not in tiny["runs"]
    assert tiny["cold_by"] == ""
    assert set(tiny["times_cp"]["warm"]) == {BAKE, INPUT, PEFT}
    assert tiny["shares"][COPY] == 0
    assert tiny["shares"][BAKE] > 0.9
    assert tiny["shares"][INPUT] > 0.9
    assert tiny["shares"][PEFT] > 0.9
    for runs in tiny["runs"]["warm"].values():
        assert set(runs[0]) == {"wall", "processor", "anonymous", "total", "output_bytes", "new_bytes"}
        assert runs[0]["output_bytes"] >= WEIGHTS
    assert tiny["runs"]["warm"][BAKE][0]["anonymous"] > 10_000_000  # python and numpy alone take more
    assert "no --mergekit-python" in printed


def test_the_first_round_goes_forward_the_second_backwards_and_cold_after_warm(tmp_path, monkeypatch):
    place = Place(tmp_path / "size", SHARD)
    python = fake_mergekit(tmp_path / "bin", f"cp -r {place.base} {place.out}")
    commands = []
    timed = bake_measuring.timed
    monkeypatch.setattr(bake_measuring, "timed", lambda *a: (commands.append(a[0][0].split("/")[-1]), timed(*a))[1])
    figures = measure_size("tiny", place, asked(COPY, MERGEKIT, mergekit_python=python, rounds=2), NoProgress())
    assert commands == ["cp", "mergekit-yaml", "mergekit-yaml", "cp"] * 2
    assert {cache: {name: len(runs) for name, runs in by.items()} for cache, by in figures.runs.items()} == {
        cache: {COPY: 2, MERGEKIT: 2} for cache in ("warm", "cold")
    }
    assert figures.cold_by == "posix_fadvise, the files of the base"
    assert not place.out.exists()
    assert not place.adapter.exists()  # nobody asked for it
    assert (place.base / "config.json").is_file()


def test_a_peer_that_fails_is_shown_and_left_out(tmp_path, monkeypatch):
    python = fake_mergekit(tmp_path / "bin", "echo went wrong; echo out of luck; exit 3")
    figures = measure_size(
        "tiny", Place(tmp_path / "size", SHARD), asked(COPY, MERGEKIT, mergekit_python=python), NoProgress()
    )
    assert figures.left_out == {MERGEKIT: "failed, status 3: out of luck"}
    assert all(set(runs) == {COPY} for runs in figures.runs.values())


def test_what_did_not_do_its_work_is_not_measured(tmp_path, monkeypatch):
    place = Place(tmp_path / "size", SHARD)
    monkeypatch.setattr(bake_measuring, "command_of", lambda *_: ["cp", "-r", str(place.base), str(place.out)])
    with pytest.raises(SystemExit, match=r"bake: its result holds 0\.000 of an edit of attn_write, not 1"):
        measure_size("tiny", place, asked(BAKE), NoProgress())


def test_a_failure_of_ours_ends_the_run_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(bake_measuring, "command_of", lambda *_: ["sh", "-c", "echo broken; exit 1"])
    with pytest.raises(SystemExit, match="failed, status 1: broken"):
        bake.main(["--sizes", "tiny", "--rounds", "1", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_kept_and_taken_again_where_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(bake, "SUBJECTS", (COPY,))
    arguments = ["--sizes", "tiny", "--rounds", "1", "--out", str(tmp_path / "out"), "--workdir", str(tmp_path / "w")]
    bake.main([*arguments, "--keep"])
    (folder,) = (tmp_path / "w").iterdir()
    written = (folder / "base" / "model.safetensors").stat().st_mtime_ns
    assert not (folder / "out").exists()
    bake.main([*arguments, "--keep"])
    assert (folder / "base" / "model.safetensors").stat().st_mtime_ns == written
    (folder / "base" / "config.json").unlink()  # as a killed run leaves it
    bake.main([*arguments, "--keep"])
    assert (folder / "base" / "model.safetensors").stat().st_mtime_ns > written


def test_a_size_without_room_on_the_disk_is_skipped_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bake_measuring.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000_000))
    bake.main(["--sizes", "8", "--out", str(tmp_path)])
    reason = f"needs 34.7 GB on the disk of {tmp_path}, and 10.0 GB are free"
    assert json.loads((tmp_path / "bake.json").read_text())["skipped_sizes"] == {"8": reason}
    assert f"8 B parameters is not measured: {reason}." in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bake.json", "bake.md"]


def test_an_unknown_size_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bake.main(["--sizes", "0.5,7", "--out", str(tmp_path / "out")])
    assert "no size '7': use tiny, 0.5" in capsys.readouterr().err


def test_why_subjects_are_left_out(tmp_path, monkeypatch):
    def why(name, *, peers=True, mergekit_python=None):
        return missing(name, peers=peers, mergekit_python=mergekit_python)

    assert why(COPY) is why(BAKE) is why(PEFT) is None
    assert why(PEFT, peers=False) == why(MERGEKIT, peers=False) == "no --peers"
    assert "mergekit-yaml is not there" in why(MERGEKIT, mergekit_python=tmp_path / "python")
    assert why(MERGEKIT, mergekit_python=fake_mergekit(tmp_path / "bin", "")) is None
    monkeypatch.setattr(bake_subjects, "_help_of_bake", lambda: "  --link  Hard links")
    assert why(LINK) is None
    monkeypatch.setattr(bake_subjects, "available", lambda: 10_000_000_000)
    assert too_large(PEFT, 8_000_000_000) is None
    assert "about 10.9 GB, and 10.0 GB" in too_large(PEFT, 9_000_000_000)
    assert all(too_large(name, 10**12) is None for name in SUBJECTS if name != PEFT)


def test_commands_name_their_edits(tmp_path):
    place = Place(tmp_path, SHARD)
    commands = {name: command_of(name, place, tmp_path / "bin" / "python") for name in SUBJECTS}
    assert str(place.every_layer) in commands[BAKE]
    assert "--link" not in commands[BAKE]
    assert str(place.quarter) in commands[LINK]
    assert "--link" in commands[LINK]
    assert commands[MERGEKIT][0] == str(tmp_path / "bin" / "mergekit-yaml")
    assert "1000000" in commands[MERGEKIT]  # parameters of a shard
    assert all(str(place.out) in command for command in commands.values())
    with pytest.raises(ValueError, match="'tar'"):
        command_of("tar", place, None)


@pytest.mark.parametrize(
    ("quarter", "layers"), [("first", range(8)), ("middle", range(12, 20)), ("last", range(24, 32))]
)
def test_a_quarter_lies_together(quarter, layers):
    assert quarter_of(32, quarter) == layers
    assert len(quarter_of(3, quarter)) == 1


@pytest.mark.parametrize("reads", ["output", "input"])
def test_edits_change_their_maps_as_much_as_they_should(reads, tmp_path):
    write_checkpoint(CONFIGS["tiny"], tmp_path / "base", SHARD)
    base = open_model_folder(tmp_path / "base")
    plan = plan_of(base, range(base.num_layers), reads)
    assert len(plan.edits) == 2 * base.num_layers
    for edit, name in zip(plan.edits[:2], ("self_attn.o_proj", "mlp.down_proj"), strict=True):
        weight = base.tensors.read(f"model.layers.0.{name}.weight").astype("f4")
        change = edit.left @ (edit.right.T @ weight if reads == "output" else edit.right.T)
        assert (change**2).sum() ** 0.5 / (weight**2).sum() ** 0.5 == pytest.approx(0.01, rel=0.1)
        assert edit.left.shape == (256, 16)
    assert share_in(base.path, base, 0, "mlp_write", reads) == 0


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("0.5", 494_032_768), ("1.5", 1_543_714_304), ("3", 3_212_749_824), ("8", 8_030_261_248)],
)
def test_sizes_are_those_of_the_models_they_are_named_after(size, parameters):
    assert weight_bytes(CONFIGS[size]) == 2 * parameters
    assert "lm_head.weight" not in tensor_shapes(CONFIGS["3"])
    assert "lm_head.weight" in tensor_shapes(CONFIGS["8"])


def test_tables_give_medians_ratios_and_growth():
    copy = [(1.0, 1_000_000), (2.0, 1_000_000), (3.0, 1_000_000)]
    baked = [run_of(2.0, 200_000_000), run_of(3.0, 210_000_000), run_of(3.0, 190_000_000)]
    small = SizeFigures("llama", 10**9, 1, [0], {"warm": {COPY: [run_of(*run) for run in copy], BAKE: baked}})
    lines = size_table(small).splitlines()
    assert lines[-2].startswith("| cp -r | 2.00 (1.00 to 3.00) | 1 | 1 |")
    assert lines[-1].startswith("| bake | 3.00 (2.00 to 3.00) | 1.50 (1.00 to 2.00) | 200 |")
    large = SizeFigures("llama", 3 * 10**9, 1, [0], {"warm": {COPY: [run_of(1.0)], BAKE: [run_of(4.0, 220_000_000)]}})
    assert slope({"0.5": small}, BAKE) is None
    assert slope({"0.5": small, "3": large}, BAKE) == pytest.approx(0.01)
    assert memory_table({"0.5": small, "3": large}).splitlines()[-1] == (
        "| bake | 200 | 220 | 10.0 | 1.10 | below 500; largest over smallest 0.9 to 1.1 |"
    )
    assert memory_table({"0.5": small}).splitlines()[-1].startswith("| bake | 200 |  |  |")


def test_requirements_stand_where_they_hold():
    runs = {COPY: [run_of(1.0)], BAKE: [run_of(1.2, 100)], LINK: [run_of(0.5, 100)], PEFT: [run_of(9.0, 2_000)]}
    small, large = (SizeFigures("llama", size, 1, [0], {"warm": runs}) for size in (2_999_999_999, 3_000_000_000))
    assert "at most" not in size_table(small)
    lines = size_table(large).splitlines()
    assert lines[3].endswith("| at most 1.3 times cp |")
    assert lines[4].endswith("| at most 0.6 times cp |")
    assert lines[5].endswith("|  |")
    memory = "with 20.0 times the anonymous and 20.0 times the total memory"
    said = f"peft takes 7.50 (7.50 to 7.50) times as long as bake, {memory}"
    assert peft_line(small) == f"{said}."
    assert peft_line(large) == f"{said}; required: at least 5 and 10."
    del runs[PEFT]
    assert peft_line(large) is None


def test_a_cold_column_stands_where_it_was_measured():
    figures = SizeFigures("llama", 10**9, 1, [0], {"warm": {COPY: [run_of(1.0)], BAKE: [run_of(2.0)]}})
    assert "cold" not in size_table(figures)
    figures.runs["cold"] = {COPY: [run_of(4.0)]}
    lines = size_table(figures).splitlines()
    assert "| seconds, cold | times cp, cold |" in lines[0]
    assert "| 4.00 (4.00 to 4.00) | 1 |" in lines[2]
    assert "| 2.00 (2.00 to 2.00) |  |  |" in lines[3]
