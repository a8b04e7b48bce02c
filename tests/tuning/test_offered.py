"""What is chosen among, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from alignez_bake.asked_fit import AUTO, AskedFit
from alignez_bake.errors import BadInputError
from alignez_bake.fit_settings import FitSettings
from alignez_bake.methods.registry import JOINT_METHODS, METHODS
from alignez_bake.model_folder import open_model_folder
from alignez_bake.tuning.offered import LADDER, STRENGTHS, TuneSettings, check_settings


@pytest.fixture
def checked(tiny_folder):
    def checked(model_type="llama", **settings):
        base = open_model_folder(tiny_folder(model_type))
        return check_settings(base, AskedFit(**({"seed": 3} | settings)))

    return checked


def test_auto_offers_every_rung(checked):
    found = checked()
    assert isinstance(found, TuneSettings)
    assert [candidate.name for candidate in found.candidates] == [
        f"{rung.method}-{strength:g}" for rung in LADDER for strength in rung.first
    ]
    assert [fit.method.name for fit in found.kinds] == [rung.method for rung in LADDER]
    assert len(found.fits) == len(found.candidates)
    for candidate, fit in zip(found.candidates, found.fits, strict=True):
        assert candidate.settings.strength == fit.strength
        assert (candidate.layers, candidate.settings.seed) == ((0, 1), 3)
    assert found.as_json()["candidates"][0] == "contrastive_decoding-1.5"


@pytest.mark.parametrize("model_type", ["gemma2", "mixtral", "granite"])
def test_what_a_base_does_not_allow_stays_a_candidate_with_its_reason(checked, model_type):
    found = checked(model_type)
    assert {fit.method.name for fit in found.fits} == {"ridge"}
    assert len(found.candidates) == len(checked().candidates)


@pytest.mark.parametrize(
    ("method", "rungs"), [("ridge", STRENGTHS["ridge"]), ("mean_difference", (0.25, 0.5, 1, 1.5, 2))]
)
def test_the_strengths_of_one_method(checked, method, rungs):
    found = checked(method=method, strength=AUTO, rank=2, layers="1")
    assert [candidate.settings.strength for candidate in found.candidates] == list(rungs)
    assert {candidate.method for candidate in found.candidates} == {METHODS[method]}
    assert {(candidate.layers, candidate.settings.rank) for candidate in found.candidates} == {((1,), 2)}


def test_a_named_method_is_what_it_was(checked):
    found = checked(method="ridge", strength=1.5)
    assert isinstance(found, FitSettings)
    assert found.strength == 1.5
    assert isinstance(checked(method="ridge"), FitSettings)


def test_jointly_only_what_can_be_fitted_jointly(checked):
    assert {fit.method.name for fit in checked(joint=True).fits} == set(JOINT_METHODS)


def test_gates_and_positions_reach_the_candidates(checked):
    found = checked(method="alignez_v2", strength=AUTO, gated=True, positions="last", top_layers=1)
    assert {candidate.positions for candidate in found.candidates} == {"last"}
    assert {(one.settings.gated, one.settings.top_layers) for one in found.candidates} == {(True, 1)}


def test_a_tied_head_is_untied_by_the_candidates_that_change_it(checked):
    found = checked("gpt2", untie=True)
    assert {(one.method.name, one.settings.untie) for one in found.candidates} == {
        ("contrastive_decoding", True),
        ("ridge", False),
    }
    assert not any(one.settings.untie for one in checked("gpt2").candidates)
    named = checked("gpt2", untie=True, method="contrastive_decoding")
    assert named.for_objective(None).untie
    assert named.as_json()["untie"] is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"untie": True}, "--untie: the head of .* is a tensor of its own already"),
        ({"untie": True, "method": "contrastive_decoding"}, "is a tensor of its own already"),
        ({"untie": True, "method": "ridge"}, "'ridge' leaves the head alone, .* use it with contrastive_decoding"),
        ({"untie": True, "joint": True}, "which --joint does not choose among"),
        ({"strength": 2.0}, "--strength 2.0 means something else for each method"),
        ({"gated": True}, "--gated belongs to a method that is named"),
        ({"top_layers": 1}, "--top-layers belongs to a method that is named"),
        ({"kl_budget": 0.0}, "--kl-budget 0 must be a number of nats per token above 0"),
        ({"kl_budget": float("nan")}, "--kl-budget nan must be"),
        ({"method": "ridge", "kl_budget": 0.1}, "--kl-budget 0.1 belongs to the choice of an edit"),
        ({"layers": "7"}, "7"),
        ({"rank": 5000}, "rank 5000 is above what site"),
        ({"method": "nonsense", "strength": AUTO}, "method 'nonsense' is unknown"),
        ({"positions": "first"}, "positions 'first' is unknown"),
    ],
)
def test_refusals(checked, settings, message):
    with pytest.raises(BadInputError, match=message):
        checked(**settings)


def test_neutral_texts_that_are_not_there(checked, tmp_path):
    with pytest.raises(BadInputError, match="no such file of neutral texts"):
        checked(neutral=tmp_path / "none.txt")
    with pytest.raises(BadInputError, match="no such file of neutral texts"):
        checked(method="ridge", strength=1.0, neutral=tmp_path / "none.txt")
    (tmp_path / "some.txt").write_text("Rain.\n")
    with pytest.raises(BadInputError, match=r"'ridge' sees no texts but the pairs, .* with residual_ridge, contr"):
        checked(method="ridge", strength=1.0, neutral=tmp_path / "some.txt")
    assert checked(method="residual_ridge", neutral=str(tmp_path / "some.txt")).neutral == tmp_path / "some.txt"


def test_without_the_last_layer_no_readout_can_be_changed(checked):
    with pytest.raises(BadInputError, match="behind layer 1, the model's last one, and --layers 0 leaves it out"):
        checked(method="contrastive_decoding", layers="0")
    found = checked(layers="0")
    assert {fit.method.name for fit in found.fits} == {"ridge"}
    assert found.candidates[0].name == "contrastive_decoding-1.5"


def test_what_is_left_open_is_varied_beside_the_best(checked):
    found = checked().finer
    assert found.strengths == {"contrastive_decoding": (1.5, 2.5), "ridge": (2.0, 1.0, 3.0)}
    assert (found.rank, found.penalty, found.layers) == (True, True, True)
    fixed = checked(rank=2, layers="1").finer
    assert (fixed.rank, fixed.penalty, fixed.layers) == (False, True, False)
    named = checked(method="ridge", strength=AUTO, penalty=0.3)
    assert (named.finer.strengths, named.finer.penalty) == ({}, False)
    assert {candidate.settings.penalty for candidate in named.candidates} == {0.3}
    assert not checked(method="alignez_v2", strength=AUTO, top_layers=1).finer.layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": 0.1}, "--penalty belongs to a method that is named: use it with --method contrastive_decoding"),
        (
            {"penalty": 0.1, "method": "shift"},
            "'shift' is no penalised fit, .* ridge, residual_ridge, contrastive_deco",
        ),
        ({"penalty": 0.0, "method": "ridge"}, "penalty 0 is not possible: λ must be a finite number above 0"),
    ],
)
def test_a_penalty_is_for_methods_that_have_one(checked, settings, message):
    with pytest.raises(BadInputError, match=message):
        checked(**settings)


def test_a_penalty_stands_in_the_settings_that_find_the_edits_again(checked):
    found = checked(method="ridge", penalty=0.3)
    assert found.as_json()["penalty"] == 0.3
    assert found.for_objective(None).penalty == 0.3
    assert "penalty" not in checked(method="ridge").as_json()
