"""How each kind of artefact is introduced and loaded, in its model card."""

from __future__ import annotations

import json
import shlex

from alignez_bake.report.markdown import code, fenced


def intro(artefact: str, base_name: str, model_type: str, edits: int, *, needs_code: bool) -> str:
    """One paragraph: what this is.

    Args:
        artefact: name of the exporter.
        base_name: of the base, as the user knows it.
        model_type: of the base.
        edits: how many there are.
        needs_code: whether the result brings code of its own.
    """
    base = f"{code(base_name)} ({code(model_type)})"
    count = f"{edits} low-rank edit{'' if edits == 1 else 's'}"
    if artefact == "checkpoint" and needs_code:
        return (
            f"This is {base} with {count}, of which those that no weight can hold are small modules, described in one "
            "Python file beside the weights. It needs no hooks, but the flag `trust_remote_code=True`."
        )
    models = {
        "checkpoint": "folded into its weights. It is an ordinary checkpoint: it needs no hooks, no extra code and no "
        "flag",
        "onnx": "as one ONNX graph, `model.onnx`, which reads the prompt and each token after it with a cache. It "
        "needs no hooks, no torch and no code of its own",
        "onnx-genai": "folded into its weights, as a model of onnxruntime-genai",
    }
    if artefact in models:
        return f"This is {base} with {count} {models[artefact]}."
    kinds = {
        "adapter": "as a LoRA adapter for PEFT",
        "gguf": "as files for llama.cpp that are loaded beside the base",
        "edits": "as they are, to be baked into the base",
    }
    return f"These are {count} of {base}, {kinds.get(artefact, f'exported as {code(artefact)}')}."


def loading(name: str, base_name: str, artefact: str, *, needs_code: bool, revision: str | None = None) -> str:
    """The commands that load a result.

    Args:
        name: of the result folder.
        base_name: of the base.
        artefact: name of the exporter.
        needs_code: whether the result brings code of its own.
        revision: of the base, where its name is one of the hub: the artefact belongs to that commit.
    """
    folder, base = json.dumps(name, ensure_ascii=False), json.dumps(base_name, ensure_ascii=False)
    at_commit = "" if revision is None else f", revision={json.dumps(revision)}"
    note = "The name is this folder's; on the hub it is `user/repo`."
    match artefact:
        case "checkpoint":
            flag = ", trust_remote_code=True" if needs_code else ""
            return _python(
                note,
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                f"model = AutoModelForCausalLM.from_pretrained({folder}{flag})",
                f"tokenizer = AutoTokenizer.from_pretrained({folder})",
            )
        case "adapter":
            return _python(
                note,
                "from peft import PeftModel",
                "from transformers import AutoModelForCausalLM",
                "",
                f"base = AutoModelForCausalLM.from_pretrained({base}{at_commit})",
                f"model = PeftModel.from_pretrained(base, {folder})",
                "model = model.merge_and_unload()  # optional: an ordinary checkpoint again",
            )
        case "gguf":
            return _shell(
                "Beside the base as GGUF, with those of the two files that are here:",
                "llama-cli -m base.gguf --lora adapter.gguf --control-vector control_vector.gguf",
            )
        case "onnx" | "onnx-genai":
            return _python(note, *_graph_lines(artefact, folder))
        case "edits":
            pinned = base_name if revision is None else f"{base_name}@{revision}"
            words = ["alignez-bake", "bake", "--model", pinned, "--edits", name, "--out", "aligned"]
            return _shell(note, shlex.join(words))
        case _:
            return f"As files of the kind {code(artefact)} are loaded."


def _graph_lines(artefact: str, folder: str) -> list[str]:
    if artefact == "onnx-genai":
        return [
            "import onnxruntime_genai",
            "",
            f"model = onnxruntime_genai.Model({folder})",
            "tokenizer = onnxruntime_genai.Tokenizer(model)",
        ]
    return [
        "from optimum.onnxruntime import ORTModelForCausalLM",
        "from transformers import AutoTokenizer",
        "",
        f"model = ORTModelForCausalLM.from_pretrained({folder})",
        f"tokenizer = AutoTokenizer.from_pretrained({folder})",
        "",
        "# or without torch and transformers",
        "from pathlib import Path",
        "",
        "from alignez_bake.runtime.text import open_folder",
        "",
        f'answers = open_folder(Path({folder}), ["cuda", "cpu"]).answer(["..."], max_new_tokens=60)',
    ]


def _python(note: str, *lines: str) -> str:
    return "\n\n".join([fenced("\n".join(lines), "python"), note])


def _shell(note: str, line: str) -> str:
    return "\n\n".join([note, fenced(line, "sh")])
