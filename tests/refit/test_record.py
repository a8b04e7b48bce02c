"""What edits read, against the plainest recording."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site
from tests.refit.recorded import plain_rows, stored_rows

MODEL_TYPES = ("llama", "qwen3", "gpt2", "opt", "gemma2", "gpt_neox", "phi3")
CASES = [("attn_write", "output"), ("attn_write", "input"), ("mlp_write", "output"), ("mlp_write", "input"),
         ("mlp_write", "block"), ("mlp_gate", "output"), ("residual", "output"), ("embed", "output")]  # fmt: skip


def _ordered(sequences):
    """In the recorder's order: the longest first, stable."""
    return sorted(sequences, key=lambda ids: -len(ids))


@pytest.mark.parametrize(
    ("model_type", "kind", "reads"),
    [
        (model_type, kind, reads)
        for model_type in MODEL_TYPES
        for kind, reads in CASES
        if kind not in architecture_for({"model_type": model_type}).absent_sites
    ],
)
def test_rows_are_those_of_the_edited_model_without_padding(tiny_lm64, edit_at, sequences, model_type, kind, reads):
    lm = tiny_lm64(model_type)
    site = Site(kind, None if kind == "embed" else 1)
    first = edit_at(lm, Site("mlp_write", 0), seed=1)
    plan = EditPlan((first, edit_at(lm, site, reads=reads, seed=2)))
    texts = sequences[:9]
    found, _ = stored_rows(lm, plan, 1, texts, batch_size=4)
    expected = plain_rows(lm, plan, 1, _ordered(texts))
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    if kind != "embed":  # every other site lies behind the first edit
        unedited = plain_rows(lm, EditPlan((plan.edits[1],)), 0, _ordered(texts))
        assert np.linalg.norm(found - unedited) > 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2"])
def test_an_entry_reads_what_the_entries_before_it_in_its_objective_left(tiny_lm64, edit_at, sequences, model_type):
    lm = tiny_lm64(model_type)
    site = Site("mlp_write", 0)
    entries = [
        edit_at(lm, site, seed=1, objective="a"),
        edit_at(lm, site, seed=2, objective="b", gate="tanh"),
        edit_at(lm, site, seed=3, objective="a", reads="input", gate="tanh"),
        edit_at(lm, site, seed=4, objective="a", reads="block"),
        edit_at(lm, site, seed=5, objective="a"),
    ]
    plan = EditPlan(tuple(entries), weights={"a": 0.5, "b": -1.0})
    texts = _ordered(sequences[:6])
    expected = plain_rows(lm, plan, 4, texts)
    found, block = stored_rows(lm, plan, 4, texts, block=True)
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    raw = plain_rows(lm, EditPlan((entries[4],)), 0, texts)
    assert np.linalg.norm(found - raw) > 1e-4 * np.linalg.norm(expected)
    asked = plain_rows(lm, plan, 3, texts)
    assert np.linalg.norm(block - asked) <= 1e-6 * np.linalg.norm(asked)


def test_the_same_edit_twice_is_two_entries(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    edit = edit_at(lm, Site("mlp_write", 0))
    plan = EditPlan((edit, edit))
    first, second = (stored_rows(lm, plan, index, sequences[:4])[0] for index in (0, 1))
    assert np.linalg.norm(first - second) > 0.01 * np.linalg.norm(first)


def test_no_hook_stays_and_what_does_not_fit_is_refused(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    good = edit_at(lm, Site("mlp_write", 0))
    wide = replace(good, left=np.ones((40, 2)), right=np.ones((40, 2)), bias=None)
    for edit, message in (
        (wide, "width 40, but the site's output has 32"),
        (edit_at(lm, Site("mlp_write", 0), reads="input"), None),
        (replace(good, reads="input"), "reads 32 values, but the site's input has 64"),
        (replace(good, site=Site("mlp_write", 5)), "layers 0 to 1"),
    ):
        if message is None:
            stored_rows(lm, EditPlan((edit,)), 0, sequences[:4])
        else:
            with pytest.raises(BadInputError, match=message):
                stored_rows(lm, EditPlan((edit,)), 0, sequences[:4])
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
