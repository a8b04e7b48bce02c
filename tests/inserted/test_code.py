"""The generated file: short, clean, the same every time, with the one formula in it and nothing of the user's."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from alignez_bake import formula
from alignez_bake.architectures.architecture import known_model_types
from alignez_bake.errors import BadInputError
from alignez_bake.inserted.code import classes_for, generate_code

ROOT = Path(__file__).parents[2]
TYPES = known_model_types()


@pytest.mark.parametrize("model_type", TYPES)
def test_every_described_architecture_has_its_classes(model_type):
    """By transformers' own mapping from model types to classes, and importable from `transformers` itself."""
    classes = classes_for(model_type)
    config = transformers.CONFIG_MAPPING[model_type]
    assert (config.__name__, transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config].__name__) == (
        classes.config,
        classes.model,
    )
    for name in (classes.config, classes.model):
        assert hasattr(transformers, name)
    assert classes.own_model.endswith("ForCausalLM")


def test_a_model_type_without_classes_is_refused():
    with pytest.raises(BadInputError, match=r"'bloom'.*described are .*gemma2, .*qwen3"):
        generate_code("bloom")


@pytest.mark.parametrize("model_type", TYPES)
def test_the_file_is_short_and_imports_torch_and_transformers_alone(model_type):
    code = generate_code(model_type)
    assert len(code.splitlines()) < 150
    assert code.endswith("\n")
    tree = ast.parse(code)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imported}
    assert {name.split(".")[0] for name in names} == {"torch", "transformers"}


def test_the_files_are_clean(tmp_path):
    for model_type in TYPES:
        (tmp_path / f"modeling_{model_type}.py").write_text(generate_code(model_type), encoding="utf-8")
    for arguments in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_fresh_process_gives_the_same_bytes_without_torch():
    script = (
        "import sys, hashlib; from alignez_bake.inserted.code import generate_code\n"
        "print(hashlib.sha256(generate_code('llama').encode()).hexdigest())\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@pytest.mark.parametrize("function", [formula.edit_delta, formula.apply_groups])
def test_the_formula_in_the_file_is_the_one_formula(function):
    """Same names of arguments, same body: equal trees, annotations and docstrings aside."""
    for model_type in TYPES:
        (found,) = [
            node
            for node in ast.parse(generate_code(model_type)).body
            if isinstance(node, ast.FunctionDef) and node.name == function.__name__
        ]
        (own,) = ast.parse(inspect.getsource(function)).body
        assert [argument.arg for argument in found.args.args] == [argument.arg for argument in own.args.args]
        assert [ast.dump(node) for node in found.body[1:]] == [ast.dump(node) for node in own.body[1:]]
        summary = ast.get_docstring(own).splitlines()[0]
        assert ast.get_docstring(found) == summary


def test_the_formula_uses_no_name_but_its_own():
    """It would not be there in the generated file."""
    for function in (formula.edit_delta, formula.apply_groups):
        (own,) = ast.parse(inspect.getsource(function)).body
        local = {node.id for node in ast.walk(own) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        local |= {argument.arg for argument in own.args.args}
        read = {node.id for statement in own.body for node in ast.walk(statement) if isinstance(node, ast.Name)}
        assert read - local <= {"GATES", "edit_delta", "len"}


def test_the_gates_of_the_file_are_those_of_the_formula():
    tree = ast.parse(generate_code("llama"))
    (table,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "GATES"]
    assert [json.loads(ast.unparse(key).replace("'", '"')) for key in table.keys] == list(formula.GATES)
