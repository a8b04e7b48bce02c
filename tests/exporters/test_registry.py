"""Exporters by name: ours, those of other packages, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alignez_bake.exporters import registry
from alignez_bake.exporters.protocol import Exporter
from alignez_bake.exporters.registry import EXPORTERS, exporter_named, formats_that_carry, known_exporters

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.random_edits import edit_for_slot, random_edit

# What a person would write who follows docs/exporters.md.
TOY = '''
from pathlib import Path
from alignez_bake.exporters.protocol import Exported

class NamesExporter:
    """Writes the sites of the edits that fold, one a line."""

    name = "names"
    routes = frozenset({"fold"})
    exactness = "names only"
    cost = "none"
    card_library = "toy"
    highest_level = "tensors"
    default_level = "tensors"
    options = frozenset()
    inserts_need_code = True
    streams = False
    reads_fp8 = False

    def supports(self, edit, slot):
        from alignez_bake.lowering.decide import fold_refusal
        return fold_refusal(edit, slot)

    def check(self, base, lowering, settings):
        lowering.require_complete()

    def bytes_needed(self, base, lowering, settings):
        return 100

    def export(self, base, lowering, out, settings, progress):
        (out / "names.txt").write_text("".join(f"{fold.slot.site}\\n" for fold in lowering.folds))
        return Exported()

    def certify_tensors(self, base, lowering, out, progress):
        raise NotImplementedError

    def reload(self, base, out, lowering, *, device, trust_remote_code):
        raise NotImplementedError
'''
BAKE = """
import sys
from pathlib import Path
from alignez_bake.edit_file import read_edits
from alignez_bake.exporters.protocol import ExportSettings
from alignez_bake.exporters.registry import exporter_named, known_exporters
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
assert known_exporters()[-1] == "names", known_exporters()
assert not [name for name in sys.modules if name.startswith("toy_exporter")]
base, out = open_model_folder(Path(sys.argv[1])), Path(sys.argv[3])
exporter = exporter_named("names")
lowering = lower(read_edits(sys.argv[2]), base, exporter)
exporter.check(base, lowering, ExportSettings())
exporter.export(base, lowering, out, ExportSettings(), NoProgress())
"""
ASK = """
import sys
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.registry import exporter_named
try:
    exporter_named(sys.argv[1])
except BadInputError as error:
    print(error)
"""


def install(folder, distribution, entry, module="toy_exporter", code=TOY):
    """What pip leaves behind of a package with one exporter."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\n{entry}\n")
    (folder / f"{module}.py").write_text(code)


def python(code, *arguments, path):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(registry.__file__).parents[1],
    )


def test_an_exporter_of_another_package_bakes(tmp_path, tiny_folder):
    from alignez_bake.edit_file import write_edits
    from tests.baking import plan_for

    install(tmp_path / "site", "toy-exporter", "names = toy_exporter:NamesExporter")
    base = tiny_folder("llama")
    write_edits(plan_for(base), tmp_path / "edits.safetensors")
    (tmp_path / "out").mkdir()
    done = python(BAKE, base, tmp_path / "edits.safetensors", tmp_path / "out", path=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "names.txt").read_text() == "attn_write.0\nattn_write.1\n"


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ("names = toy_exporter:NamesExporter", "raise RuntimeError('no such device')",
         "the exporter 'names' of toy-exporter (toy_exporter:NamesExporter) cannot be loaded: RuntimeError: no such d"),
        ("names = toy_exporter:Nothing", TOY, "cannot be loaded: AttributeError"),
        ("names = elsewhere:NamesExporter", TOY, "cannot be loaded: ModuleNotFoundError"),
        ("names = toy_exporter:NamesExporter", TOY.replace("def reload", "def load").replace("cost =", "price ="),
         "is no exporter: it lacks cost, reload; see docs/exporters.md"),
        ("names = toy_exporter:NamesExporter", TOY.replace("frozenset({", "list({"), "it lacks routes"),
        ("names = toy_exporter:NamesExporter", TOY.replace('"names"', '"others"'), "calls itself 'others'"),
    ],
)  # fmt: skip
def test_a_broken_exporter_is_refused_by_name(entry, code, message, tmp_path):
    install(tmp_path, "toy-exporter", entry, code=code)
    done = python(ASK, "names", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    # It is asked for nothing as long as nobody asks for it.
    assert python(ASK, "edits", path=tmp_path).stdout == ""


def test_two_packages_with_one_name_are_both_named(tmp_path):
    install(tmp_path, "toy-exporter", "names = toy_exporter:NamesExporter")
    install(tmp_path, "another", "names = another:NamesExporter", module="another")
    (message,) = python(ASK, "names", path=tmp_path).stdout.splitlines()
    assert message.startswith("--as 'names' is claimed by 2 packages")
    assert "toy-exporter" in message
    assert "another" in message
    assert python(ASK, "edits", path=tmp_path).stdout == ""


def test_a_package_cannot_take_one_of_our_names(tmp_path):
    install(tmp_path, "toy-exporter", "checkpoint = toy_exporter:NamesExporter")
    (message,) = python(ASK, "checkpoint", path=tmp_path).stdout.splitlines()
    assert message == (
        "--as 'checkpoint' is claimed by 2 packages, alignez-bake and toy-exporter: uninstall all but one"
    )


MADE_OF = {"onnx": {"checkpoint"}, "onnx-genai": {"checkpoint"}}
"""Graphs are traced from the baked checkpoint."""


@pytest.mark.parametrize("name", EXPORTERS)
def test_each_name_imports_its_own_exporter_alone(name, tmp_path):
    parts = {name} | MADE_OF.get(name, set())
    code = f"""
import sys
from alignez_bake.exporters.registry import EXPORTERS, exporter_named
assert exporter_named({name!r}).name == {name!r}
others = {{place.partition(":")[0] for key, place in EXPORTERS.items() if key not in {parts}}}
print(*sorted((others | {{"torch", "transformers", "peft", "gguf"}}) & set(sys.modules)))
"""
    done = python(code, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_the_members_that_are_looked_for_are_the_protocols():
    members = {name for name in vars(Exporter) if not name.startswith("_")} | set(Exporter.__annotations__)
    assert {*registry._VALUES, *registry._METHODS} == members


@pytest.mark.parametrize("name", EXPORTERS)
def test_ours_have_all_members(name):
    exporter = exporter_named(name)
    assert exporter.name == name
    assert all(isinstance(getattr(exporter, member), kind) for member, kind in registry._VALUES.items())
    assert all(callable(getattr(exporter, member)) for member in registry._METHODS)
    assert "refuse" not in exporter.routes


def test_unknown_names_say_what_there_is():
    listed = ", ".join(known_exporters())
    with pytest.raises(BadInputError, match=f"--as 'ckpt' is unknown: use one of {listed}"):
        exporter_named("ckpt")


def test_formats_that_carry_an_edit(tiny_folder):
    llama = open_model_folder(tiny_folder("llama"))
    slot = find_slot(llama, Site("attn_write", 0))
    linear, gated = edit_for_slot(slot), random_edit(Site("residual", 0), 32, 32)
    assert formats_that_carry(linear, slot)[:2] == ("checkpoint", "adapter")
    found = formats_that_carry(gated, find_slot(llama, gated.site))
    assert found[0] == "checkpoint --trust-remote-code"
    assert "adapter" not in found
    assert found[-1] == "edits"
