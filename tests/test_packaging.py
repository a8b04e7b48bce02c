"""The wheel holds everything, works from anywhere, and the list of packages is the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import alignez_bake
from alignez_bake.lowering.row_kernel import why_not_compiled

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = ("alignez_bake", "exporters", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def in_tree(folder: str, name: str) -> set[str]:
    """Every package of a source folder, by its import name."""
    packages = set()
    for init in (ROOT / folder).rglob("__init__.py"):
        inner = init.parent.relative_to(ROOT / folder).parts
        packages.add(".".join((name, *inner)))
    return packages


def test_the_list_of_packages_is_the_tree():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == in_tree("alignez_bake", "alignez_bake") | in_tree("exporters", "alignez_bake.exporters")


def test_every_folder_with_code_or_data_is_a_package():
    for folder in ("alignez_bake", "exporters"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".json", ".jsonl", ".txt"):
                assert (file.parent / "__init__.py").is_file(), file


def test_every_public_name_resolves():
    for name in alignez_bake.__all__:
        assert getattr(alignez_bake, name).__doc__
    assert sorted(alignez_bake.__all__) == list(alignez_bake.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alignez_bake.nothing


def test_the_version_is_one():
    assert PROJECT["project"]["version"] == alignez_bake.__version__


def copied_sources(source: Path) -> Path:
    """What a package is built of, without what was built before."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
            )
        else:
            source.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copied_sources(folder / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q"]
    done = subprocess.run([*build, "-w", folder, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_code_and_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in (("alignez_bake", "alignez_bake"), ("exporters", "alignez_bake/exporters")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".json", ".jsonl", ".txt", ".typed"):
                assert f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}" in names
    about = f"alignez_bake-{alignez_bake.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"alignez_bake", about}
    assert f"{about}/licenses/LICENSE" in names


def test_the_wheel_holds_the_kernel_for_this_python_and_later_ones(wheel):
    if why_not_compiled() is not None:
        pytest.skip(why_not_compiled())
    assert wheel.name.split("-")[2:4] == ["cp311", "abi3"]
    names = [name for name in zipfile.ZipFile(wheel).namelist() if Path(name).stem.startswith("_row_kernel")]
    assert sorted(Path(name).suffix for name in names) == [".pyi", ".so"]


def test_without_a_compiler_the_package_is_built_without_the_kernel(tmp_path):
    source = copied_sources(tmp_path / "source")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = {**os.environ, "CC": "no-such-compiler"}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no-such-compiler" in done.stderr + done.stdout
    assert not list(source.rglob("*.so"))


def test_the_wheel_works_from_another_folder(wheel, tmp_path, tiny_folder):
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        # -P and the path first: the checkout, also where it is installed in place, is not what is found.
        environment = {**os.environ, "PYTHONPATH": str(target)}
        command = [sys.executable, "-P", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    where = run("-c", "import alignez_bake, alignez_bake.exporters as e; print(alignez_bake.__file__, e.__file__)")
    package = target / "alignez_bake"
    assert where.stdout.split() == [str(package / "__init__.py"), str(package / "exporters" / "__init__.py")]
    assert run("-m", "alignez_bake", "--version").stdout.strip() == alignez_bake.__version__
    explained = run("-m", "alignez_bake", "explain", "--model", tiny_folder("llama"))
    assert explained.returncode == 0, explained.stderr
    assert "self_attn.o_proj" in explained.stdout
