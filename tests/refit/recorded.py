"""Activations stored whole: by the recorder, and by the plainest way there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.refit.record import record_edits
from tests.capture.naive import whole_sequence

GATES = {"identity": lambda x: x, "relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}


def hidden(edit, read, gate=None):
    """g(r R + s) in numpy."""
    return GATES[edit.gate if gate is None else gate](read @ edit.right + (0.0 if edit.offset is None else edit.offset))


def effect(edit, read):
    """All that an edit adds, in numpy."""
    return edit.strength * (hidden(edit, read) @ edit.left.T + (0.0 if edit.bias is None else edit.bias))


def stored_rows(lm, plan, index, sequences, *, batch_size=8, block=False):
    """What the recorder hands over for one edit: (r, x), in the recorder's order of tokens."""
    read, blocks = [], []

    def take(place, rows):
        assert place == index
        read.append(rows.read.numpy().copy())
        if rows.block is not None:
            blocks.append(rows.block.numpy().copy())

    record_edits(lm, plan, [index], sequences, take, batch_size=batch_size, advance=lambda n=1: None, block=block)
    return np.concatenate(read), np.concatenate(blocks) if blocks else None


def plain_rows(lm, plan, index, sequences):
    """The same, one text at a time without padding, from the model with the edits of all other sites."""
    edit = plan.edits[index]
    others = EditPlan(tuple(other for other in plan.edits if other.site != edit.site))
    before = [other for other in plan.edits[:index] if other.site == edit.site and other.objective == edit.objective]
    rows = []
    for ids in sequences:
        y, _ = whole_sequence(lm, ids, edit.site, "output", others)
        values = {"output": y}
        if edit.site.kind in lm.architecture.sites:
            values["input"], _ = whole_sequence(lm, ids, edit.site, "input", others)
        if edit.site.kind in lm.architecture.blocks:
            values["block"] = _block_input(lm, ids, edit.site, others)
        for other in before:
            values["output"] = values["output"] + effect(other, values[other.reads])
        rows.append(values[edit.reads])
    return np.concatenate(rows)


def _block_input(lm, ids, site, plan):
    seen = []

    def hook(_module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).reshape(len(ids), -1).double().numpy())

    handle = lm.model.get_submodule(lm.architecture.block_path(site)).register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad(), edited_by_hooks(lm.model, lm.architecture, plan):
        lm.model(input_ids=torch.tensor([ids]))
    handle.remove()
    return seen[0]


def parts(sequences):
    """The fitting part and the held-out part."""
    held_out = sequences[3::4]
    return [sequence for place, sequence in enumerate(sequences) if place % 4 != 3], held_out


def share(truth, fit):
    """Explained variance, uncentred."""
    return 1 - np.square(truth - fit).sum() / np.square(truth).sum()


def at(plan, index, edit):
    """The plan with another edit at a place."""
    return replace(plan, edits=(*plan.edits[:index], edit, *plan.edits[index + 1 :]))
