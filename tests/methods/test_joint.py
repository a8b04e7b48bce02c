"""Shares of tokens, and captures that several objectives are fitted by together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignez_bake.capture.run import Capture
from alignez_bake.capture.spec import Reading, RowsSpec
from alignez_bake.capture.weights import disagreement_weights
from alignez_bake.errors import BadInputError
from alignez_bake.methods.joint import joint_captures, shares
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.registry import JOINT_METHODS, METHODS, check_joint
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.progress import NoProgress
from alignez_bake.site import Site


def test_the_share_is_the_squared_ratio_to_the_strongest_other():
    found = shares(
        {
            "a": [np.array([0.4, 0.1, 0.0]), np.array([0.2])],
            "b": [np.array([0.1, 0.4, 0.0]), np.array([0.2])],
            "c": [np.array([0.0, 0.2, 1e-9]), np.array([0.1])],
        }
    )
    assert found["a"][0] == pytest.approx([1.0, 0.0625, 1.0])
    assert found["b"][0] == pytest.approx([0.0625, 1.0, 1.0])
    # A token at which nobody disagrees is nobody's.
    assert found["c"][0] == pytest.approx([6.25e-12, 0.25, 1.0])
    assert [float(found[name][1][0]) for name in "abc"] == pytest.approx([1.0, 1.0, 0.25])


def test_a_leak_falls_to_its_fifth_power():
    """Two planted traits at different tokens; one persona moves both. JSD is quadratic in what a persona does."""
    rng = np.random.default_rng(0)
    n, leak = 400, 0.4
    first = np.arange(n) % 2 == 0
    z = np.column_stack([first, ~first]).astype(float) @ rng.normal(size=(2, 9)) + 0.1 * rng.normal(size=(n, 9))
    trait_a, trait_b = rng.normal(size=6), rng.normal(size=6)
    d_a = np.outer(first, trait_a) + leak * np.outer(~first, trait_b)
    jsd = {"a": np.where(first, 0.2, 0.2 * leak**2), "b": np.where(first, 1e-9, 0.2)}
    share = shares({name: [values] for name, values in jsd.items()})["a"][0]

    def moved(d):
        """How much of trait b the fitted map adds where b is decided, in units of the trait itself."""
        fitted = np.linalg.lstsq(z, d, rcond=None)[0]
        return [
            float((z @ fitted)[tokens].mean(axis=0) @ trait / (trait @ trait))
            for tokens, trait in ((first, trait_a), (~first, trait_b))
        ]

    assert moved(d_a) == pytest.approx([1.0, leak], abs=0.05)
    assert moved(d_a * share[:, None]) == pytest.approx([1.0, leak**5], abs=0.05)


@pytest.fixture
def lm(tiny_lm64):
    return tiny_lm64("llama")


@pytest.fixture
def two_readings(pairs):
    """The same pairs under the personas of two objectives: the second one's contexts are swapped and shortened."""
    other = [
        replace(
            pair,
            prompts={
                "plain": pair.prompts["plain"],
                "good": pair.prompts["bad"],
                "bad": (pair.prompts["bad"][0], *pair.prompts["bad"][2:]),
            },
        )
        for pair in pairs
    ]
    return {"a": pairs, "b": other}


def test_weights_are_those_of_disagreement_times_the_shares(lm, two_readings):
    captures = joint_captures(lm, two_readings, batch_size=4, progress=NoProgress())
    divergences = {name: Capture(lm, found).divergences("good", "shared") for name, found in two_readings.items()}
    whose = shares(divergences)
    assert any(share.min() < 0.5 for share in whose["b"])
    site = Site("attn_write", 1)
    spec = RIDGE.spec(site)
    readings = [Reading("plain", "input"), Reading("good", "output"), Reading("bad", "output")]
    bare = [RowsSpec(site, reading, "good", "shared") for reading in readings]
    for name, found in two_readings.items():
        z, good, bad = (Capture(lm, found)(bare).rows[each].values for each in bare)
        weights = np.concatenate(
            [w * s for w, s in zip(disagreement_weights(divergences[name]), whose[name], strict=True)]
        )
        expected = z.T @ ((good - bad) * weights[:, None])
        assert captures[name]([spec]).moments[spec].ztd == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("method", [RIDGE, RESIDUAL_RIDGE])
def test_both_ridges_fit_what_is_shared_out(method, lm, two_readings):
    captures = joint_captures(lm, two_readings, batch_size=4, progress=NoProgress())
    for name, found in two_readings.items():
        settings = MethodSettings(objective=name, rank=2)
        joint = method.fit(captures[name], lm.architecture, (0, 1), settings).edits
        alone = method.fit(Capture(lm, found, batch_size=4), lm.architecture, (0, 1), settings).edits
        assert [edit.objective for edit in joint] == [name, name]
        # Of "a" no token is another's: it disagrees more than "b" wherever either does.
        changed = not np.allclose(joint[0].right, alone[0].right, rtol=1e-3)
        assert changed == (name == "b")


def test_methods_without_weights_of_tokens_are_refused():
    for name, method in METHODS.items():
        if name in JOINT_METHODS:
            check_joint(method)
            assert method.weight == "disagreement"
        else:
            with pytest.raises(BadInputError, match=f"'{name}' does not weigh tokens, so --joint means nothing"):
                check_joint(method)


def test_prompts_of_other_tokens_are_refused(lm, two_readings, pairs):
    shorter = [replace(pair, shared=max(1, pair.shared - 1)) for pair in pairs]
    with pytest.raises(BadInputError, match="other tokens behind the personas of 'b' than behind those of 'a'"):
        joint_captures(lm, {"a": pairs, "b": shorter}, batch_size=4, progress=NoProgress())
