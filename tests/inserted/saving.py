"""Inserted checkpoints on disk: a base, a plan for its sites, and the folder that transformers loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM

from alignez_bake.edit_plan import EditPlan
from alignez_bake.inserted.model import SiteInsert, inserted_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.site import Site
from tests.random_edits import random_edit

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from transformers import PreTrainedModel

    from alignez_bake.edit import Edit
    from alignez_bake.model_folder import ModelFolder

HIDDEN = ("hidden_size", "n_embd")


def widths(base: ModelFolder, site: Site, reads: str) -> tuple[int, int]:
    """Width of a site's output, and of what an edit there reads."""
    hidden = next(base.config[name] for name in HIDDEN if name in base.config)
    d_out = base.config["intermediate_size"] if site.kind == "mlp_gate" else hidden
    if reads != "input":
        return d_out, d_out if reads == "output" else hidden
    if site.kind == "mlp_gate":
        return d_out, hidden
    from alignez_bake.lowering.slot import find_slot

    return d_out, find_slot(base, site).d_in


def edit_at(base: ModelFolder, kind: str, layer: int | None = None, *, reads: str = "output", **fields: Any) -> Edit:
    """A random edit with offset and bias; `fields` are those of `Edit`, and `seed`, `rank` and `scale`."""
    settings = {name: fields.pop(name) for name in ("seed", "rank", "scale") if name in fields}
    site = Site(kind, layer)
    d_out, d_read = widths(base, site, reads)
    return replace(random_edit(site, d_out, d_read, reads=reads, constant=True, **settings), **fields)


def plan_of(*edits: Edit, **weights: float) -> EditPlan:
    """The edits with dials."""
    return EditPlan(edits, weights=weights)


def save_inserted(base: Path, plan: EditPlan, out: Path) -> Path:
    """Write the base with the plan inserted; tensors of the base keep names and bytes."""
    folder = open_model_folder(base)
    made = inserted_model(folder, [SiteInsert(site, plan.groups_at(site)) for site in plan.sites])
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    (out / made.code_file).write_text(made.code, encoding="utf-8")
    (out / "config.json").write_text(json.dumps(made.config, indent=2) + "\n", encoding="utf-8")
    tensors: dict[str, np.ndarray[Any, Any]] = {name: folder.tensors.read(name) for name in folder.tensors.names()}
    assert not set(tensors) & set(made.tensors)
    write_tensors(out / "model.safetensors", {**tensors, **made.tensors}, {"format": "pt"})
    return out


def load_inserted(path: Path, **settings: Any) -> PreTrainedModel:
    """The checkpoint as its users load it, with no key missing, left over or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(
        path, trust_remote_code=True, output_loading_info=True, **settings
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(what), (what, info[what])
    return model.eval()
