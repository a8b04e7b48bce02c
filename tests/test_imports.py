"""What looks at files alone imports neither torch nor transformers; the result needs nothing of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.edit_file import write_edits
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from tests.baking import plan_for
from tests.running import load, relative
from tests.tiny_models import VOCABULARY

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "tokenizers", "huggingface_hub", "onnx", "onnxscript", "onnxruntime", "peft", "gguf"}
HEAVY |= {"matplotlib"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, save_tiny):
    """A base, its edits as a file, and a result."""
    folder = tmp_path_factory.mktemp("made")
    base = save_tiny("llama", folder / "base")
    write_edits(plan_for(base), folder / "edits.safetensors")
    bake(base, folder / "edits.safetensors", folder / "result")
    bake(base, folder / "edits.safetensors", folder / "undone")
    return folder


def loaded_after(code: str, cwd: Path) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after it ran the code."""
    script = f"import sys\n{code}\nprint('MODULES', *sorted(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


def shell(*arguments: str) -> str:
    return (
        "from alignez_bake.cli.main import build_app\nfrom alignez_bake.cli.shell import run\n"
        f"assert run(build_app(), {list(arguments)!r}) == 0"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import alignez_bake; alignez_bake.Edit, alignez_bake.bake, alignez_bake.verify, alignez_bake.explain",
        shell("--version"),
        shell("--help"),
        *(
            shell(name, "--help")
            for name in ("pairs", "fit", "bake", "explain", "verify", "compare", "inspect", "push", "restore", "eval")
        ),
        shell("bake", "--model", "base", "--edits", "edits.safetensors", "--out", "none", "--dry-run"),
        shell("bake", "--model", "base", "--edits", "edits.safetensors", "--out", "new"),
        shell("explain", "--model", "base", "--edits", "edits.safetensors"),
        shell("inspect", "result"),
        shell("verify", "result", "--level", "tensors"),
        shell("verify", "result", "--level", "manifest"),
        shell("restore", "undone", "--base", "base", "--yes"),
    ],
    ids=["package", "version", "help", "pairs", "fit", "bake", "explain", "verify", "compare", "inspect",
         "push", "restore", "eval", "a dry run", "a bake", "an explain", "an inspect", "a verify",
         "a verify of the manifest", "a restore"],
)  # fmt: skip
def test_no_library_is_imported_that_runs_models(code, made):
    assert not loaded_after(code, made) & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [
        ("bake", "--model", "base", "--edits", "edits.safetensors", "--out", "shown", "--report"),
        ("inspect", "result", "--html", "page.html"),
    ],
    ids=["a bake", "an inspect"],
)
def test_a_report_needs_the_library_that_draws_and_no_other(arguments, made):
    assert loaded_after(shell(*arguments), made) & HEAVY == {"matplotlib"}


def test_the_check_would_see_them(made):
    assert loaded_after("import alignez_bake; alignez_bake.compare", made) >= {"torch", "transformers"}


PLAIN = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("alignez_bake", "exporters"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import alignez_bake
except ModuleNotFoundError:
    pass
else:
    sys.exit("alignez_bake can be imported: this proves nothing")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
assert AutoTokenizer.from_pretrained(sys.argv[1])("one two")["input_ids"]
ids = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save({"logits": model.eval()(ids).logits, "dtype": str(model.dtype)}, sys.argv[3])
assert not [name for name in sys.modules if name.startswith("alignez_bake")]
"""


def test_plain_transformers_gives_the_hooked_logits_where_this_package_is_not_importable(made, tmp_path):
    ids = torch.randint(3, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))
    torch.save(ids, tmp_path / "ids.pt")
    command = [sys.executable, "-I", "-c", PLAIN, made / "result", tmp_path / "ids.pt", tmp_path / "found.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    base = open_model_folder(made / "base")
    original = load(base.path, torch.float32)
    with torch.no_grad():
        unedited = original(ids).logits
        with edited_by_hooks(original, base.architecture, plan_for(base)):
            hooked = original(ids).logits
    assert found["dtype"] == "torch.float32"
    assert relative(found["logits"], hooked) <= 1e-5
    assert relative(unedited, hooked) > 100 * 1e-5


def test_the_blocker_really_blocks():
    """Without it the same interpreter does import the package, so the test above does not pass for want of it."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import alignez_bake"], cwd="/", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
