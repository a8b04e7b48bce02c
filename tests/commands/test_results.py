"""What `verify` says of a result that somebody changed: which part, with status 1, and without running any of it."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from alignez_bake.commands.bake import bake
from alignez_bake.commands.compare import compare
from alignez_bake.commands.verify import verify
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import open_model_folder
from tests.baking import command, flipped, replace_tensors
from tests.commands.small_bakes import config_of, edits_at, routes, small_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

CODE = "modeling_alignez.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with `base`, a qwen2, and `out`, a llama with new biases, units and a module. Never change it."""
    folder = tmp_path_factory.mktemp("made")
    base = small_base("qwen2", folder / "base")
    plan = EditPlan(
        (
            *edits_at(base, "attn_write", layers=[0], constant=True),
            *edits_at(base, "mlp_write", layers=[0], reads="block", gate="relu"),
            *edits_at(base, "mlp_write", layers=[1], gate="relu"),
        )
    )
    result = bake(base, plan, folder / "out", trust_remote_code=True)
    assert result.verdict == "passed"
    assert routes(result) == {"attn_write.0": "rehome", "mlp_write.0": "rehome", "mlp_write.1": "insert"}
    return folder


@pytest.fixture
def mutant(made, tmp_path) -> Path:
    """A copy of the result, its base beside it."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made" / "out"


def of_tensor(name: str, part: Callable[[np.ndarray], np.ndarray] = flipped) -> Callable[[Path], None]:
    """Change one tensor."""

    def change(out: Path) -> None:
        assert name in open_model_folder(out).tensors
        replace_tensors(out, lambda found, values: part(values) if found == name else None)

    return change


def last_unit(values: np.ndarray) -> np.ndarray:
    """One more in the row of the last of the rank's two hidden units, which lie behind the 64 that were there."""
    changed = values.copy()
    changed[65] += 1
    return changed


def unused_unit(values: np.ndarray) -> np.ndarray:
    """A value in a row that is there to be divisible only."""
    changed = values.copy()
    changed[-1] += 1
    return changed


def of_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change one JSON file."""

    def changed(out: Path) -> None:
        values = json.loads((out / name).read_text())
        change(values)
        (out / name).write_text(json.dumps(values))

    return changed


def appended(name: str) -> Callable[[Path], None]:
    """One byte more at the end of a text file."""
    return lambda out: (out / name).write_text((out / name).read_text() + " ")


MUTATIONS = {
    "an inserted parameter": (
        of_tensor("model.layers.1.mlp.down_proj.alignez_edits.0.right"),
        r"model\.layers\.1\.mlp\.down_proj\.alignez_edits\.0\.right, a parameter of an inserted module, is not the",
    ),
    "a bias of zeros": (
        of_tensor("model.layers.1.self_attn.o_proj.bias"),
        r"model\.layers\.1\.self_attn\.o_proj\.bias, which makes room for edits and has none of its own, is not",
    ),
    "a bias with an edit": (
        of_tensor("model.layers.0.self_attn.o_proj.bias", lambda values: values * 1.01),
        r"model\.layers\.0\.self_attn\.o_proj\.bias: 32 of 32 values are not the formula's",
    ),
    "a hidden unit": (
        of_tensor("model.layers.0.mlp.gate_proj.weight", last_unit),
        r"model\.layers\.0\.mlp\.gate_proj\.weight: 32 of \d+ values are not the formula's",
    ),
    "the factor of a hidden unit": (
        of_tensor("model.layers.0.mlp.up_proj.weight", last_unit),
        r"model\.layers\.0\.mlp\.up_proj\.weight, which makes room for edits and has none of its own, is not",
    ),
    "a hidden unit of a layer without": (
        of_tensor("model.layers.1.mlp.gate_proj.weight", unused_unit),
        r"model\.layers\.1\.mlp\.gate_proj\.weight, which makes room",
    ),
    "a tensor without an edit": (
        of_tensor("model.layers.1.self_attn.q_proj.weight"),
        r"1 tensor\(s\) without an edit differ from the base's: model\.layers\.1\.self_attn\.q_proj\.weight",
    ),
    "the strength in config.json": (
        of_json("config.json", lambda config: config["alignez_edits"][0]["parts"][0]["groups"][0].update(weight=2.0)),
        r"config\.json is not what it must be in alignez_edits",
    ),
    "the size of the MLP in config.json": (
        of_json("config.json", lambda config: config.update(mlp_bias=False)),
        r"config\.json is not what it must be in mlp_bias",
    ),
    "the code": (
        appended(CODE),
        rf"{CODE} is not what is written for these edits; results of another version .* are verified by that version$",
    ),
    "the code that config.json names": (
        of_json("config.json", lambda config: config["auto_map"].update(AutoModelForCausalLM="other.Model")),
        r"config\.json is not what it must be in auto_map",
    ),
    "another code file": (
        lambda out: (out / "other.py").write_text("x = 1\n"),
        r"1 file\(s\) are neither the base's nor the edits': other\.py",
    ),
    "the tokenizer's config": (
        of_json("tokenizer_config.json", lambda config: config.update(tokenizer_class="Qwen2TokenizerFast")),
        r"tokenizer_config\.json is not what is written for these edits$",
    ),
    "the tokenizer": (
        appended("tokenizer.json"),
        r"1 file\(s\) are missing or differ from the base's: tokenizer\.json",
    ),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_what_was_changed_is_found_and_named(case, mutant):
    change, reason = MUTATIONS[case]
    change(mutant)
    result = verify(mutant, level="tensors")
    assert result.verdict == "failed"
    (found,) = result.levels[0].reasons
    assert re.search(reason, found), found


def test_the_result_as_it_was_written_passes(mutant):
    assert verify(mutant, level="tensors").verdict == "passed"
    assert open_model_folder(mutant).tensors.entry("model.layers.0.mlp.gate_proj.weight").shape[0] > 66
    assert config_of(mutant)["model_type"] == "alignez_llama"


def test_the_command_ends_with_status_1_and_the_reason(mutant, capsys):
    MUTATIONS["an inserted parameter"][0](mutant)
    assert command("verify", mutant, "--device", "cpu") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the certificate is failed: model.layers.1.mlp.down_proj.alignez_edits.0.right, a")


def hostile(place: str) -> Callable[[Path], None]:
    """Code that leaves a file `executed` when it is run, and else is what a loader looks for in that place."""

    def change(out: Path) -> None:
        rest = "def generate(model): pass\n" if place.startswith("custom") else (out / CODE).read_text()
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).write_text(f"open({str(out / 'executed')!r}, 'w').close()\n{rest}")
        if place == "other.py":
            of_json("config.json", lambda config: config.update(auto_map=named_other(config["auto_map"])))(out)

    return change


def named_other(auto_map: dict[str, str]) -> dict[str, str]:
    """The same classes, of another file."""
    return {name: place.replace("modeling_alignez.", "other.") for name, place in auto_map.items()}


# The last of them is named nowhere: transformers runs it for whoever trusts the folder's code.
HOSTILE = [CODE, "other.py", "custom_generate/generate.py"]


@pytest.mark.parametrize("flag", [[], ["--trust-remote-code"]])
@pytest.mark.parametrize("place", HOSTILE)
def test_code_of_others_is_not_run_by_verify(place, flag, mutant, capsys):
    hostile(place)(mutant)
    assert command("verify", mutant, "--device", "cpu", *flag) == 1
    assert not (mutant / "executed").exists()
    assert place in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("place", HOSTILE)
def test_code_of_others_is_not_run_by_compare(place, mutant):
    hostile(place)(mutant)
    with pytest.raises(BadInputError, match="it is not run"):
        compare(mutant, prompts=["one"], max_new_tokens=2)
    assert not (mutant / "executed").exists()


@pytest.mark.parametrize("place", HOSTILE)
def test_the_hostile_code_would_have_been_run_by_a_plain_load(place, mutant):
    """So that the tests above can fail."""
    from transformers import AutoModelForCausalLM

    hostile(place)(mutant)
    AutoModelForCausalLM.from_pretrained(mutant, trust_remote_code=True)
    assert (mutant / "executed").exists()
