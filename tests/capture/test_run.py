"""Capture against a loop that runs one sequence at a time, on every architecture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from alignez_bake.capture.run import Capture
from alignez_bake.capture.spec import CONTEXTS, TOKENS, MomentsSpec, Reading, RowsSpec
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site
from tests.capture import naive
from tests.random_edits import random_edit
from tests.tiny_models import COMBINATIONS

RIDGE_SPEC = MomentsSpec(
    Site("attn_write", 1),
    key=Reading("plain", "input"),
    plus=Reading("good", "output"),
    minus=Reading("bad", "output"),
    answer="good",
    tokens="shared",
    weight="disagreement",
)


def _close(found, expected, tolerance=1e-6):
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


_SIDES = ("input", "output")


def _all_row_specs(lm):
    """Every site and side, with contexts, answers and tokens dealt out so that each occurs."""
    places = [
        (Site(kind, layer), side)
        for kind, linear in lm.architecture.sites.items()
        for layer in (0, 1)
        for side in _SIDES
        if side in linear.legal_reads
    ]
    places += [(Site("embed"), "output"), (Site("residual", 0), "output"), (Site("residual", 1), "output")]
    return [
        RowsSpec(site, Reading(CONTEXTS[i % 3], side), ("good", "bad")[i // 2 % 2], TOKENS[i % 4])
        for i, (site, side) in enumerate(places)
    ]


@pytest.mark.parametrize(("model_type", "bias"), COMBINATIONS)
def test_rows_are_those_of_the_naive_loop(tiny_lm64, pairs, model_type, bias):
    lm = tiny_lm64(model_type, bias)
    specs = _all_row_specs(lm)
    found = Capture(lm, pairs, batch_size=3)(specs).rows
    assert set(found) == set(specs)
    for spec in specs:
        expected = [naive.rows(lm, pair, spec, spec.reading) for pair in pairs]
        assert found[spec].values.dtype == np.float64
        _close(found[spec].values, np.concatenate(expected))


def test_the_input_of_a_mixture_of_experts_is_not_taken_for_one_writers(tiny_lm64, pairs):
    spec = RowsSpec(Site("mlp_write", 1), Reading("plain", "input"), "good", "last")
    with pytest.raises(
        BadInputError, match=r"input of mlp_write\.1 cannot be recorded: every expert has one of its own"
    ):
        Capture(tiny_lm64("mixtral", False), pairs, batch_size=3)([spec])


@pytest.mark.parametrize(("model_type", "bias"), COMBINATIONS)
def test_weighted_moments_are_those_of_the_naive_loop(tiny_lm64, pairs, model_type, bias):
    lm = tiny_lm64(model_type, bias)
    found = Capture(lm, pairs, batch_size=3)([RIDGE_SPEC]).moments[RIDGE_SPEC]
    z, plus, minus = (
        np.concatenate([naive.rows(lm, pair, RIDGE_SPEC, reading) for pair in pairs]) for reading in RIDGE_SPEC.readings
    )
    divergences = np.concatenate([naive.divergences(lm, pair, "good", "shared") for pair in pairs])
    weights = np.minimum(1, divergences / np.percentile(divergences, 90))
    d = (plus - minus) * weights[:, None]
    assert found.count == len(z) == sum(pair.shared + len(pair.answers["good"]) for pair in pairs)
    _close(found.ztz, z.T @ z)
    _close(found.ztd, z.T @ d)
    _close(found.z_sum, z.sum(axis=0))
    assert found.d_square == pytest.approx(np.square(d).sum(), rel=1e-6)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("minus", [None, Reading("bad", "output")])
def test_moments_of_other_tokens_and_without_minus(tiny_lm64, pairs, tokens, minus):
    lm = tiny_lm64("gemma2")
    weight = None if tokens == "answer_mean" else "disagreement"
    spec = MomentsSpec(
        Site("mlp_write", 0), Reading("bad", "input"), Reading("good", "output"), minus, "bad", tokens, weight
    )
    found = Capture(lm, pairs, batch_size=2)([spec]).moments[spec]
    z, *outputs = (np.concatenate([naive.rows(lm, pair, spec, reading) for pair in pairs]) for reading in spec.readings)
    d = outputs[0] if minus is None else outputs[0] - outputs[1]
    if weight is not None:
        ends = [naive.divergences(lm, pair, "bad", "shared" if tokens == "shared" else "answer") for pair in pairs]
        divergences = np.concatenate([end[-1:] if tokens == "last" else end for end in ends])
        d = d * np.minimum(1, divergences / np.percentile(divergences, 90))[:, None]
    _close(found.ztd, z.T @ d)
    assert found.count == len(z)


def test_different_tokens_at_one_place_share_a_pass(tiny_lm64, pairs):
    lm = tiny_lm64("llama")
    rows = [RowsSpec(Site("mlp_write", 1), Reading("good", "output"), "good", tokens) for tokens in TOKENS]
    moments = [dataclasses.replace(RIDGE_SPEC, tokens=tokens) for tokens in ("last", "answer", "shared")]
    found = Capture(lm, pairs, batch_size=3)([*rows, *moments])
    for spec in rows:
        expected = np.concatenate([naive.rows(lm, pair, spec, spec.reading) for pair in pairs])
        _close(found.rows[spec].values, expected)
    capture = Capture(lm, pairs, batch_size=3)
    for spec in moments:
        alone = capture([spec]).moments[spec]
        _close(found.moments[spec].ztd, alone.ztd)
        assert found.moments[spec].count == alone.count


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "qwen3"])
def test_padding_never_leaks(tiny_lm64, pairs, model_type):
    lm = tiny_lm64(model_type)
    other = dataclasses.replace(lm)
    other.__dict__["pad_id"] = 77
    assert lm.pad_id != other.pad_id
    specs = [*_all_row_specs(lm), RIDGE_SPEC]
    one, two = Capture(lm, pairs, batch_size=7)(specs), Capture(other, pairs, batch_size=7)(specs)
    for spec in one.rows:
        np.testing.assert_array_equal(one.rows[spec].values, two.rows[spec].values)
    np.testing.assert_array_equal(one.moments[RIDGE_SPEC].ztd, two.moments[RIDGE_SPEC].ztd)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_nothing(tiny_lm64, pairs, batch_size):
    lm = tiny_lm64("llama")
    specs = [*_all_row_specs(lm), RIDGE_SPEC]
    one, two = Capture(lm, pairs, batch_size=3)(specs), Capture(lm, pairs, batch_size=batch_size)(specs)
    for spec in one.rows:
        _close(two.rows[spec].values, one.rows[spec].values)
    _close(two.moments[RIDGE_SPEC].ztd, one.moments[RIDGE_SPEC].ztd)


def test_two_halves_merged_are_the_whole(tiny_lm64, pairs):
    lm = tiny_lm64("llama")
    specs = [*_all_row_specs(lm), dataclasses.replace(RIDGE_SPEC, weight=None)]
    whole = Capture(lm, pairs)(specs)
    halves = Capture(lm, pairs[:3])(specs).merged_with(Capture(lm, pairs[3:])(specs))
    for spec in whole.rows:
        _close(halves.rows[spec].values, whole.rows[spec].values)
    for spec, moments in whole.moments.items():
        assert halves.moments[spec].count == moments.count
        _close(halves.moments[spec].ztz, moments.ztz)
        _close(halves.moments[spec].ztd, moments.ztd)


@pytest.mark.parametrize("model_type", ["opt", "phi3", "gpt2"])
def test_recordings_see_the_edited_model(tiny_lm64, pairs, model_type):
    lm = tiny_lm64(model_type)
    width = lm.model.config.hidden_size
    reading = Reading("good", "output")
    specs = [
        RowsSpec(Site(kind, layer), reading, "bad", "answer")
        for kind in ("attn_write", "mlp_write")
        for layer in (0, 1)
    ]
    plan = EditPlan((random_edit(Site("mlp_write", 0), width, width, constant=True),))
    capture = Capture(lm, pairs, batch_size=3)
    plain, edited = capture(specs).rows, capture(specs, plan).rows
    for spec in specs:
        expected = [naive.rows(lm, pair, spec, reading, plan) for pair in pairs]
        _close(edited[spec].values, np.concatenate(expected))
    changed = [np.abs(plain[spec].values - edited[spec].values).max() > 0.01 for spec in specs]
    assert changed == [False, True, True, True]
    again = capture(specs).rows
    assert all(np.array_equal(again[spec].values, plain[spec].values) for spec in specs)


def test_weights_are_those_of_the_edited_model(tiny_lm64, pairs):
    lm = tiny_lm64("llama")
    width = lm.model.config.hidden_size
    plan = EditPlan((random_edit(Site("mlp_write", 1), width, width, scale=3.0),))
    capture = Capture(lm, pairs)
    unweighted = dataclasses.replace(RIDGE_SPEC, weight=None)
    plain, edited = capture([RIDGE_SPEC, unweighted]).moments, capture([RIDGE_SPEC, unweighted], plan).moments
    _close(edited[unweighted].ztd, plain[unweighted].ztd)  # the edit lies behind the site
    assert np.linalg.norm(edited[RIDGE_SPEC].ztd - plain[RIDGE_SPEC].ztd) > 0.01 * np.linalg.norm(plain[RIDGE_SPEC].ztd)


class _CountingProgress:
    def __init__(self):
        self.total, self.done = 0, 0

    def task(self, description, total):
        from contextlib import contextmanager

        @contextmanager
        def counting():
            self.total += total

            def advance(n=1):
                self.done += n

            yield advance

        return counting()


@pytest.mark.parametrize(
    ("specs", "passes", "heads"),
    [
        ([RowsSpec(Site("mlp_write", layer), Reading("plain", "output"), "good") for layer in (0, 1)], 1, 0),
        ([RowsSpec(Site("mlp_write", 0), Reading("plain", "output"), side) for side in ("good", "bad")], 2, 0),
        ([dataclasses.replace(RIDGE_SPEC, weight=None)], 3, 0),
        ([RIDGE_SPEC, dataclasses.replace(RIDGE_SPEC, site=Site("attn_write", 0))], 5, 2),
        ([RIDGE_SPEC, RowsSpec(Site("mlp_write", 0), Reading("plain", "output"), "bad")], 6, 2),
    ],
    ids=["one pass", "two answers", "three contexts", "weights", "both kinds"],
)
def test_each_pass_runs_once_and_the_head_only_for_weights(tiny_lm64, pairs, specs, passes, heads):
    lm = tiny_lm64("llama")
    calls = {"embed": 0, "head": 0}
    embed = lm.model.get_input_embeddings().register_forward_hook(lambda *_: calls.update(embed=calls["embed"] + 1))
    head = lm.model.get_output_embeddings().register_forward_hook(lambda *_: calls.update(head=calls["head"] + 1))
    progress = _CountingProgress()
    try:
        Capture(lm, pairs, batch_size=3, progress=progress)(specs)
    finally:
        embed.remove()
        head.remove()
    batches = 3
    assert calls == {"embed": 1 + passes * batches, "head": heads * batches}  # one token says the widths
    assert progress.done == progress.total == passes * len(pairs)


def test_no_hook_stays(tiny_lm64, pairs):
    lm = tiny_lm64("llama")
    with pytest.raises(BadInputError, match=r"mlp_write\.7 is out of range"):
        Capture(lm, pairs)([RowsSpec(Site("mlp_write", 7), Reading("plain", "output"), "good")])
    with pytest.raises(BadInputError, match="no site 'mlp_gate'"):
        Capture(tiny_lm64("gpt2"), pairs)([RowsSpec(Site("mlp_gate", 1), Reading("plain", "output"), "good")])
    Capture(lm, pairs)([RIDGE_SPEC])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_what_cannot_be_recorded_is_refused(tiny_lm64, pairs):
    lm = tiny_lm64("llama")
    with pytest.raises(BadInputError, match="no pairs"):
        Capture(lm, [])
    long = dataclasses.replace(pairs[0], answers={"good": (5,) * 300, "bad": (5,)})
    with pytest.raises(BadInputError, match="too long"):
        Capture(lm, [*pairs, long])
    alike = [dataclasses.replace(pair, prompts={**pair.prompts, "bad": pair.prompts["good"]}) for pair in pairs]
    with pytest.raises(BadInputError, match="predict the same everywhere"):
        Capture(lm, alike)([RIDGE_SPEC])


@pytest.mark.parametrize("edited", [("plain",), CONTEXTS, ()])
def test_differences_read_elsewhere_of_several_readings_with_edits_in_some_contexts(tiny_lm64, pairs, edited):
    lm = tiny_lm64("llama")
    plan = EditPlan((random_edit(Site("mlp_write", 0), 32, 32, seed=3),))
    at = Site("residual", 1)
    good, bad, plain = (Reading(context, "output") for context in ("good", "bad", "plain"))
    spec = MomentsSpec(
        Site("mlp_write", 1),
        key=Reading("plain", "input"),
        plus=good,
        minus=plain,
        answer="good",
        target=at,
        more=((0.5, good), (-0.5, bad)),
    )

    def rows(site, reading):
        within = plan if reading.context in edited else None
        placed = dataclasses.replace(spec, site=site, target=None, more=(), minus=None, key=reading, plus=reading)
        return np.concatenate([naive.rows(lm, pair, placed, reading, within) for pair in pairs])

    z = rows(spec.site, spec.key)
    d = 1.5 * rows(at, good) - 0.5 * rows(at, bad) - rows(at, plain)
    found = Capture(lm, pairs, batch_size=3)([spec], plan, edited=edited).moments[spec]
    _close(found.ztz, z.T @ z)
    _close(found.ztd, z.T @ d)
    assert found.d_square == pytest.approx(np.square(d).sum(), rel=1e-6)


def test_weights_of_the_base_are_made_once_and_those_of_an_edited_model_anew(tiny_lm64, pairs, monkeypatch):
    lm = tiny_lm64("llama")
    plan = EditPlan((random_edit(Site("mlp_write", 0), 32, 32),))
    made, capture = [], Capture(lm, pairs, batch_size=3)
    weights = Capture._weights

    def counted(self, wanted, *arguments):
        made.append(len(wanted))
        return weights(self, wanted, *arguments)

    monkeypatch.setattr(Capture, "_weights", counted)
    first = capture([RIDGE_SPEC]).moments[RIDGE_SPEC]
    again = capture([RIDGE_SPEC], plan, edited=("plain",)).moments[RIDGE_SPEC]
    edited = capture([RIDGE_SPEC], plan).moments[RIDGE_SPEC]
    assert made == [1, 0, 1]
    assert again.d_square == pytest.approx(first.d_square, rel=1e-9)  # both personas are the base's
    assert not np.allclose(again.ztz, first.ztz)
    expected = Capture(lm, pairs, batch_size=3)([RIDGE_SPEC], plan).moments[RIDGE_SPEC]
    assert edited.d_square == expected.d_square
