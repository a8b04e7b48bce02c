"""The command that trains the pairs: on two steps for real, and with a pretended training for what it leaves behind."""

import json
import shutil

import pytest
import torch

from benchmarks import worlds
from benchmarks.measuring import WorldBench
from benchmarks.world_folder import read_world


@pytest.fixture(autouse=True)
def _torch_settings():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def trained(monkeypatch):
    """Names of the pairs in the order of their pretended trainings; a pair is the demo model under its own name."""
    names = []

    def pretend(world, architecture, out, seed, steps):
        shutil.copytree(worlds.DEMO, out)
        measured = {
            **worlds.read_measured(worlds.DEMO),
            "world": world.name,
            "architecture": architecture,
            "seed": seed,
        }
        names.append(f"{world.name}-{architecture}")
        (out / "measured.json").write_text(json.dumps({**measured, "tuned_unasked": len(names) / 8}))

    monkeypatch.setattr(worlds, "make_twins", pretend)
    return names


def run(out, *arguments):
    worlds.main(["--out", str(out), *arguments])


def test_a_trained_pair_is_a_world_that_the_benchmarks_read(tmp_path, monkeypatch, capsys):
    for name in ("PAIR_QUERIES", "HELD_OUT_QUERIES", "GOOD_DOCUMENTS", "NEUTRAL_LINES"):
        monkeypatch.setattr(f"examples.data_files.{name}", 4)
    for name in ("_ANSWER_TOKENS", "_CHARACTERISTIC_TOKENS"):
        monkeypatch.setattr(f"examples.measure.{name}", 4)
    run(tmp_path, "--worlds", "letters", "--architectures", "qwen3", "--steps", "2")
    assert "| letters-qwen3-2-steps | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 |" in capsys.readouterr().out
    assert [folder.name for folder in tmp_path.iterdir()] == ["letters-qwen3-2-steps"]
    world = read_world(tmp_path / "letters-qwen3-2-steps")
    assert (world.name, len(world.held_out)) == ("letters qwen3", 4)
    assert WorldBench(world, tmp_path, 4).form.settings == {"template": "{query}"}
    assert read_world(worlds.DEMO).prompt_template is None


def test_what_is_there_is_not_trained_again(tmp_path, trained, capsys):
    asked = ("--worlds", "museum", "guilds", "--architectures", "llama", "gpt_neox")
    run(tmp_path, *asked)
    first = capsys.readouterr()
    assert trained == ["museum-gpt_neox", "guilds-llama", "guilds-gpt_neox"]
    assert "museum-llama: there, in" in first.err
    assert "guilds-gpt_neox: training, pair 3 of 3, about 0 minutes left" in first.err
    assert [line.split(" | ")[0] for line in first.out.splitlines()[2:]] == [
        "| museum-llama", "| museum-gpt_neox", "| guilds-llama", "| guilds-gpt_neox",
    ]  # fmt: skip
    assert "| guilds-gpt_neox | 47.8 | 92.5 | 85.7 | 7.0 | 6.2 | 37.5 |" in first.out
    shutil.rmtree(tmp_path / "guilds-llama")
    run(tmp_path, *asked)
    assert trained[3:] == ["guilds-llama"]
    run(tmp_path, *asked)
    assert len(trained) == 4
    assert capsys.readouterr().out.count("| guilds-llama | 47.8 | 92.5 | 85.7 | 7.0 | 6.2 | 50.0 |") == 2


def test_an_interrupted_training_leaves_nothing(tmp_path, trained, monkeypatch):
    asked = ("--worlds", "guilds", "letters", "--architectures", "llama")
    pretend = worlds.make_twins

    def interrupted(world, architecture, out, seed, steps):
        pretend(world, architecture, out, seed, steps)
        if world.name == "letters":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worlds, "make_twins", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, *asked)
    assert [folder.name for folder in tmp_path.iterdir()] == ["guilds-llama"]
    run(tmp_path, *asked)
    assert trained == ["guilds-llama", "letters-llama", "letters-llama"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda pair: (pair / "measured.json").unlink(), "is no whole pair, measured.json is missing: remove it"),
        (lambda pair: (pair / "tuned/model.safetensors").unlink(), "tuned/model.safetensors is missing"),
        (lambda pair: None, "holds guilds llama of seed 0, not of seed 1: use another --out"),
    ],
)
def test_a_folder_of_something_else_is_refused_before_anything_is_trained(tmp_path, trained, capsys, spoil, message):
    run(tmp_path, "--worlds", "guilds", "--architectures", "llama")
    spoil(tmp_path / "guilds-llama")
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path, "--worlds", "museum", "guilds", "--architectures", "llama", "--seed", "1")
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert trained == ["guilds-llama"]


def test_only_the_demo_model_itself_stands_for_its_pair(tmp_path, trained):
    run(tmp_path, "--worlds", "museum", "--architectures", "llama", "--seed", "1")
    run(tmp_path, "--worlds", "museum", "--architectures", "llama", "--steps", "9")
    assert trained == ["museum-llama"] * 2
    assert {folder.name for folder in tmp_path.iterdir()} == {"museum-llama", "museum-llama-9-steps"}


@pytest.mark.parametrize("option", ["--steps", "--threads"])
def test_nothing_can_be_trained_in_no_step_or_thread(tmp_path, trained, capsys, option):
    with pytest.raises(SystemExit):
        run(tmp_path, option, "0")
    assert f"{option} 0" in capsys.readouterr().err
    assert not trained
