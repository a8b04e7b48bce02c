"""Bases of pickled weights: read only where that is asked for, and never by running them."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from alignez_bake.exporters.bake_key import bake_key
from alignez_bake.exporters.protocol import ExportSettings
from transformers import AutoModelForCausalLM

from alignez_bake.commands.bake import bake
from alignez_bake.commands.base import opened_base
from alignez_bake.commands.verify import verify
from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import read_record
from alignez_bake.safetensors_io.reader import open_folder
from tests.baking import command, contents, lowered, nothing_written, plan_for
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from alignez_bake.edit_plan import EditPlan

ROOT = Path(__file__).parents[2]


def pickled(folder: Path, *, shards: int = 1, tied: bool = False) -> tuple[Path, EditPlan, dict[str, torch.Tensor]]:
    """A base as it was released before safetensors; edits for it, and its weights."""
    safe = save_tiny("llama", folder / "safe", dtype=torch.bfloat16, overrides={"tie_word_embeddings": tied})
    plan = plan_for(safe, ("attn_write", "mlp_write"))
    model = AutoModelForCausalLM.from_pretrained(safe)
    weights = dict(model.state_dict())
    base = folder / "base"
    base.mkdir()
    for name, data in contents(safe).items():
        if data is not None and not name.endswith(".safetensors"):
            (base / name).write_bytes(data)
    if shards == 1:
        torch.save(weights, base / "pytorch_model.bin")
        return base, plan, weights
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {name: weights[name] for name in list(weights)[number::shards]}
        torch.save(part, base / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return base, plan, weights


class Hostile:
    """Makes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pickled_base_is_baked_as_its_safetensors_are(tmp_path: Path, shards: int) -> None:
    base, plan, weights = pickled(tmp_path, shards=shards)
    before = contents(base)
    out = tmp_path / "out"
    result = bake(base, plan, out, allow_pickle=True)
    assert result.verdict == "passed"
    assert contents(base) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "safe"]
    tensors = open_folder(out)
    expected = (
        [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
        if shards > 1
        else ["model.safetensors"]
    )
    assert list(tensors.files) == expected
    assert not list(out.glob("*.bin*"))
    assert set(tensors) == set(weights)
    plain = bake(tmp_path / "safe", plan, tmp_path / "plain")
    for name in tensors:
        assert tensors.read(name).tobytes() == open_folder(plain.path).read(name).tobytes()
    recorded = read_record(out)["base"]
    assert recorded["path"] == "../base"
    # The edits were made for the safetensors release, and the fingerprint is of the same tensors.
    assert recorded["tensors_sha256"] == open_model_folder(tmp_path / "safe").fingerprint.tensors_sha256
    with pytest.raises(BadInputError, match="pickled weights"):
        verify(out)
    found = verify(out, allow_pickle=True)
    assert found.verdict == "passed"
    assert [level.level for level in found.levels] == ["tensors", "forward"]


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    base, plan, weights = pickled(tmp_path, tied=True)
    assert "lm_head.weight" in weights
    assert bake(base, plan, tmp_path / "out", allow_pickle=True).verdict == "passed"
    assert set(open_folder(tmp_path / "out")) == set(weights) - {"lm_head.weight"}


def test_what_shares_memory_and_is_not_tied_is_written_twice(tmp_path: Path) -> None:
    base, plan, weights = pickled(tmp_path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["extra"] = weights["model.norm.weight"][3:9:2]
    torch.save(weights, base / "pytorch_model.bin")
    assert bake(base, plan, tmp_path / "out", allow_pickle=True, allow_other_base=True).verdict == "passed"
    tensors = open_folder(tmp_path / "out")
    np.testing.assert_array_equal(tensors.read("lm_head.weight"), tensors.read("model.embed_tokens.weight"))
    np.testing.assert_array_equal(tensors.read("extra"), tensors.read("model.norm.weight")[3:9:2])


def test_without_the_flag_it_is_refused_and_torch_is_not_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, plan, _ = pickled(tmp_path)
    with (
        nothing_written(tmp_path),
        pytest.raises(BadInputError, match=r"pickled weights.*--allow-pickle.*weights-only.*hostile"),
    ):
        bake(base, plan, tmp_path / "out")
    code = (
        "import sys\nfrom pathlib import Path\nfrom alignez_bake.commands.base import opened_base\n"
        f"try:\n    with opened_base(Path({str(base)!r}), None, fp8=True, allow_pickle=False): pass\n"
        "except Exception as error: print(type(error).__name__)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["BadInputError", "False"]
    assert command("pairs", "--model", base, "--out", tmp_path / "pairs.jsonl") == 2
    assert "pickled weights" in capsys.readouterr().err


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_hostile_pickle_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, inside: bool, forced: bool
) -> None:
    base, plan, weights = pickled(tmp_path)
    trap = tmp_path / "sprung"
    torch.save({**weights, "trap": Hostile(trap)} if inside else Hostile(trap), base / "pytorch_model.bin")
    if forced:  # asks torch for its other loader where a caller leaves the choice open
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="could run code: it is not read"):
        bake(base, plan, tmp_path / "out", allow_pickle=True)
    assert not trap.exists()
    with (base / "plain.pkl").open("wb") as file:
        pickle.dump(Hostile(trap), file)
    (base / "plain.pkl").replace(base / "pytorch_model.bin")
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=r"pytorch_model\.bin"):
        bake(base, plan, tmp_path / "out", allow_pickle=True)
    assert not trap.exists()
    torch.load  # noqa: B018 - the trap itself works:
    torch.save(Hostile(trap), tmp_path / "proof.bin")
    torch.load(tmp_path / "proof.bin", weights_only=False)
    assert trap.is_dir()


DAMAGE: dict[str, tuple[Any, str]] = {
    "cut": (lambda file, weights: file.write_bytes(file.read_bytes()[:-3000]), "cannot be read as pickled weights"),
    "empty": (lambda file, weights: file.write_bytes(b""), "cannot be read as pickled weights"),
    "text": (lambda file, weights: file.write_bytes(b"version https://git-lfs" * 9), "pytorch_model.bin"),
    "old": (
        lambda file, weights: torch.save(weights, file, _use_new_zipfile_serialization=False),
        "in the format that torch has since 1.6",
    ),
    "nested": (lambda file, weights: torch.save({"model": weights}, file), "no table of tensors by name"),
    "list": (lambda file, weights: torch.save(list(weights.values()), file), "no table of tensors by name"),
    "expanded": (
        lambda file, weights: torch.save({**weights, "big": torch.zeros(1).expand(1 << 20, 1 << 20)}, file),
        "'big' is no plain tensor",
    ),
    "sparse": (
        lambda file, weights: torch.save({**weights, "sparse": torch.eye(3).to_sparse()}, file),
        "'sparse' is no plain tensor",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_and_odd_pickles_are_refused(tmp_path: Path, what: str) -> None:
    base, plan, weights = pickled(tmp_path)
    change, message = DAMAGE[what]
    change(base / "pytorch_model.bin", weights)
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=re.escape(message)):
        bake(base, plan, tmp_path / "out", allow_pickle=True)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../elsewhere.bin", "must be a file of the same folder"),
        ("model.safetensors", "must be a file of the same folder"),
        ("pytorch_model-00009-of-00009.bin", "is missing"),
    ],
)
def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path, file: str, message: str) -> None:
    base, plan, _ = pickled(tmp_path, shards=2)
    path = base / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"]["model.norm.weight"] = file
    path.write_text(json.dumps(index), encoding="utf-8")
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=message):
        bake(base, plan, tmp_path / "out", allow_pickle=True)


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base, plan, _ = pickled(tmp_path, shards=2)
    path = base / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"]["ghost"] = "pytorch_model-00001-of-00002.bin"
    path.write_text(json.dumps(index), encoding="utf-8")
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="do not agree on tensor 'ghost'"):
        bake(base, plan, tmp_path / "out", allow_pickle=True)


def test_a_killed_bake_knows_its_base_again(tmp_path: Path) -> None:
    """What a journal tells a base by is the same whenever the pickles are read."""
    base, plan, _ = pickled(tmp_path, shards=2)
    keys = []
    for _ in range(2):
        with opened_base(base, tmp_path / "out", fp8=False, allow_pickle=True) as model:
            keys.append(bake_key(model, lowered(model, plan), ExportSettings()))
        time.sleep(0.02)
    assert keys[0] == keys[1]
    assert not list(tmp_path.glob(".*"))


def test_reversible_is_refused(tmp_path: Path) -> None:
    base, plan, _ = pickled(tmp_path)
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="--reversible keeps parts of safetensors files"):
        bake(base, plan, tmp_path / "out", allow_pickle=True, reversible=True)


def test_safetensors_beside_a_pickle_win(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    trap = tmp_path / "sprung"
    torch.save(Hostile(trap), base / "pytorch_model.bin")
    assert bake(base, plan_for(base), tmp_path / "out", allow_pickle=True).verdict == "passed"
    assert not trap.exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    from alignez_bake.edit_file import write_edits

    base, plan, _ = pickled(tmp_path)
    write_edits(plan, tmp_path / "edits.safetensors")
    words = ("bake", "--model", base, "--edits", tmp_path / "edits.safetensors", "--out", tmp_path / "out")
    assert command(*words) == 2
    assert command(*words, "--allow-pickle") == 0
    assert command("verify", tmp_path / "out", "--allow-pickle", "--level", "tensors") == 0
