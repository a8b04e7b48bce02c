"""The model card of a patched graph."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from alignez_bake.report.card_metadata import read_base_card
from alignez_bake.report.markdown import code, escaped, fenced, table
from alignez_bake.report.record import tool_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.certificate.verdict import LevelCertificate
    from alignez_bake.lowering.decide import Decision
    from alignez_bake.onnx_patch.base_graph import BaseGraph

_TAGS: Final = ("alignez-bake", "alignez", "self-alignment")
_SHARED: Final = (
    "Data files marked *hard-linked* are the base's own files under a second name: a change in place of one is a "
    "change of both. ONNX Runtime opens them; the Python packages `onnx` and `onnx_ir` refuse to load data files with "
    "several hard links, and take a copy (`cp -r` makes one)."
)


def graph_card(
    name: str,
    graph: BaseGraph,
    decisions: Sequence[Decision],
    files: Sequence[tuple[str, str]],
    levels: Sequence[LevelCertificate],
) -> str:
    """The card's text; the same result gives the same bytes.

    Args:
        name: of the result folder.
        graph: the graph that was patched.
        decisions: the way of each edit.
        files: data files of the base in the result, and how each came there.
        levels: the certificate's levels.
    """
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    for decision in decisions:
        key = (decision.route, decision.reason, decision.exactness, decision.cost)
        grouped.setdefault(key, []).append(str(decision.edit.site))
    rows = [(route, ", ".join(dict.fromkeys(sites)), *rest) for (route, *rest), sites in grouped.items()]
    count = f"{len(decisions)} low-rank edit{'' if len(decisions) == 1 else 's'}"
    words = ["alignez-bake", "bake", "--base-onnx", "BASE", "--edits", "alignez/edits.safetensors", "--out", "OUT"]
    linked = [_files(files)] if files else []
    intro = (
        f"This is an ONNX graph ({code(graph.architecture.model_type)}) with {count} in it: folded into its weights "
        "where a weight can hold them, and as nodes where none can."
    )
    done = [
        f"## What was done\n\nMade by {escaped(tool_name())}.",
        table(("route", "edits", "reason", "exactness", "cost"), rows),
        "Every edit is listed in `alignez/alignez.json`; the edits themselves are `alignez/edits.safetensors`.",
    ]
    sections = [
        f"---\n{_metadata(graph)}\n---",
        f"# {escaped(name)}",
        intro,
        f"## How to load it\n\n{_loading(graph, name)}",
        *done,
        *linked,
        f"## Certificate\n\n{_certificate(levels)}",
        f"## How to make it again\n\n{fenced(shlex.join(words), 'sh')}",
    ]
    return "\n\n".join(sections) + "\n"


def _files(files: Sequence[tuple[str, str]]) -> str:
    """The section on data files."""
    note = f"\n\n{_SHARED}" if any(way == "hard-linked" for _, way in files) else ""
    return f"## Files\n\n{table(('data file of the base', 'in this folder'), files)}{note}"


def _metadata(graph: BaseGraph) -> str:
    from huggingface_hub.repocard_data import ModelCardData  # noqa: PLC0415 - the card alone needs it

    card = read_base_card(graph.folder)
    data = ModelCardData(
        language=list(card.language) or None,
        library_name="onnx",
        license=card.license.get("license"),
        license_name=card.license.get("license_name"),
        license_link=card.license.get("license_link"),
        pipeline_tag="text-generation",
        tags=list(_TAGS),
    )
    return str(data.to_yaml())


def _loading(graph: BaseGraph, name: str) -> str:
    if graph.from_builder:
        return fenced(f"import onnxruntime_genai\n\nmodel = onnxruntime_genai.Model({name!r})", "python")
    return fenced(
        "from optimum.onnxruntime import ORTModelForCausalLM\n\n"
        f"model = ORTModelForCausalLM.from_pretrained({name!r}, use_io_binding=False)",
        "python",
    )


def _certificate(levels: Sequence[LevelCertificate]) -> str:
    rows: list[tuple[str, str, str]] = []
    for level in levels:
        rows.append((level.level, "verdict", level.verdict))
        rows += [(level.level, "reason", reason) for reason in level.reasons]
        rows += [
            (level.level, figure.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
            for figure, value in level.to_json().items()
            if figure not in ("level", "verdict") and isinstance(value, str | int | float)
        ]
    return (
        f"{table(('level', 'figure', 'value'), rows)}\n\n"
        "`tensors` compares what is stored with the formula, and everything else with the base graph; `forward` runs "
        "both. All figures are in `alignez/certificate.json`."
    )
